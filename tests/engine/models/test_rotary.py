"""Rotary angles, rotary scalings and ALiBi slopes against numbers computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.base.errors import UserError
from engine.models.bloom import alibi_slopes
from engine.models.rotary import Rotary, cos_sin, inverse_frequencies, rotate
from tests.engine.models.tiny import LLAMA3, YARN, llama

CPU = torch.device("cpu")


def test_pairs_rotate_by_position_times_frequency():
    rotary = Rotary(head_size=4, theta=100.0)  # frequencies 1 and 100^(-1/2) = 0.1
    x_THK = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # pairs (x0, x2) = (1, 0) and (x1, x3) = (0, 1)
    out = rotate(x_THK, *cos_sin(rotary, torch.tensor([3])))
    expected = torch.tensor([math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)])
    torch.testing.assert_close(out[0, 0], expected)


def test_bf16_heads_use_float32_angles():
    x_THK = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = cos_sin(Rotary(8, 10_000.0), torch.tensor([0, 4001]))
    assert cos.dtype == sin.dtype == torch.float32
    assert rotate(x_THK, cos, sin).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x_THK, cos, sin), rotate(x_THK.float(), cos, sin).bfloat16(), rtol=0, atol=0)


def test_llama3_scaling_keeps_blends_and_slows_frequencies():
    # Turns over 64 positions: wavelength 2 pi, 10.2 turns (kept); 2 pi * 10, 1.02 turns (blended, 0.0062 of it kept);
    # 2 pi * 100, 0.1 turns (slowed by 8).
    rotary = Rotary(6, 1000.0, "llama3", 8.0, 1.0, 4.0, 64)
    kept = (64 / (2 * math.pi * 10) - 1) / 3
    expected = torch.tensor([1.0, 0.1 * (kept + (1 - kept) / 8), 0.01 / 8])
    torch.testing.assert_close(inverse_frequencies(rotary, CPU), expected)


def test_config_fields_of_transformers_5_and_4_are_read():
    scaling = {name: number for name, number in LLAMA3.items() if name not in ("rope_theta", "rope_type")}
    new = SimpleNamespace(rope_parameters=LLAMA3)
    old = SimpleNamespace(rope_theta=500.0, rope_scaling={"type": "llama3", **scaling})
    assert Rotary.from_config(new, 8) == Rotary.from_config(old, 8) == Rotary(8, 500.0, "llama3", 8.0, 1.0, 4.0, 64)
    plain = SimpleNamespace(rope_theta=700.0, rope_scaling=None)
    assert Rotary.from_config(plain, 8) == Rotary(8, 700.0)


OWN_AMPLITUDE = {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 4.0, "truncate": False}


@pytest.mark.parametrize("head_size", [8, 64, 128])
@pytest.mark.parametrize(
    "fields",
    [
        LLAMA3,
        YARN,
        YARN | OWN_AMPLITUDE,
        YARN | {"attention_factor": 0.9},
        # Qwen2.5's and Qwen3's published numbers
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "dynamic", "rope_theta": 700.0, "factor": 3.0},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    ],
)
def test_frequencies_equal_those_of_transformers(fields, head_size):
    """Exactly: one unit in the last place is 1e-4 rad at position 2,000."""
    config = llama(head_dim=head_size, max_position_embeddings=131072, rope_parameters=fields)
    expected, amplitude = ROPE_INIT_FUNCTIONS[fields["rope_type"]](config, CPU)
    rotary = Rotary.from_config(config, head_size)
    assert torch.equal(inverse_frequencies(rotary, CPU), expected)
    assert rotary.amplitude == amplitude
    cos, sin = cos_sin(rotary, torch.tensor([0, 5000]))
    angles = 5000.0 * expected
    assert torch.equal(cos[1, 0], angles.cos() * amplitude)
    assert torch.equal(sin[1, 0], angles.sin() * amplitude)


@pytest.mark.parametrize(
    ("fields", "head_size", "said"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, 8, "'longrope' is not supported"),
        ({"rope_type": "linear"}, 8, "needs factor"),
        ({"rope_type": "yarn"}, 8, "needs factor"),
        ({"rope_type": "yarn", "factor": "4"}, 8, "needs factor"),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, 8, "rope_theta is 1, .* give more than 1"),
        ({"partial_rotary_factor": 0.5}, 8, "partial_rotary_factor is 0.5"),
        ({}, 7, "head size is 7"),
    ],
)
def test_unsupported_rotary_configs_are_refused(fields, head_size, said):
    with pytest.raises(UserError, match=said):
        config = SimpleNamespace(rope_parameters=fields, rope_theta=100.0, max_position_embeddings=256)
        Rotary.from_config(config, head_size)


def test_alibi_slopes():
    assert alibi_slopes(8, CPU).tolist() == [2**-i for i in range(1, 9)]
    assert alibi_slopes(6, CPU).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert alibi_slopes(1, CPU).tolist() == [1 / 256]
