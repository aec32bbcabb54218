"""Rotary position embedding (Su et al. 2021): frequencies from a config, cos and sin of positions, the rotation.

Pairs are (i, i + K/2), as in Hugging Face checkpoints of the LLaMA family. Frequencies are float32, in the published
order of operations: one unit in the last place is 1e-4 rad at position 2,000, and models were trained with that
rounding. They are not module buffers, because DeepSpeed casts those to bf16.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engine.base.errors import UserError
from kernels import bf16_passes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


class Rotary(NamedTuple):
    """The parameters of the frequencies. Fields after `scaling` are for the scalings that use them."""

    head_size: int
    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0

    @classmethod
    def from_config(cls, config: PretrainedConfig, head_size: int) -> Rotary:
        """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before it).

        Raises UserError for a scaling that is not default, linear or llama3, or lacks one of its numbers.
        """
        fields = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        theta = fields.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0
        scaling = fields.get("rope_type") or fields.get("type") or "default"
        if scaling not in SCALINGS:
            raise UserError(f"rotary scaling {scaling!r} is not supported: choose one of {', '.join(SCALINGS)}")
        share = fields.get("partial_rotary_factor") or 1.0
        if share != 1.0:
            raise UserError(f"partial_rotary_factor is {share}: only heads rotated whole (1.0) are supported")
        if head_size % 2:
            raise UserError(f"head size is {head_size}, rotary embedding pairs its halves: make head_dim even")
        absent = [name for name in SCALINGS[scaling] if not isinstance(fields.get(name), int | float)]
        if absent:
            raise UserError(
                f"rotary scaling {scaling!r} needs {', '.join(absent)}: add it to the config's rope_parameters"
            )
        numbers = {name: float(fields[name]) for name in SCALINGS[scaling]}
        if scaling == "llama3":
            original = fields.get("original_max_position_embeddings") or config.max_position_embeddings
            numbers["original_max_positions"] = int(original)
        return cls(head_size, float(theta), scaling, **numbers)


@cache
def inverse_frequencies(rotary: Rotary, device: torch.device) -> Tensor:
    """Return float32 [K/2]: radians per position of each pair, cached for the life of the process."""
    # Generation may call first: a cached inference tensor could not be used in training.
    with torch.inference_mode(False):
        exponents = torch.arange(0, rotary.head_size, 2, dtype=torch.float32, device="cpu") / rotary.head_size
        frequencies = 1.0 / rotary.theta**exponents
        if rotary.scaling == "linear":
            frequencies = frequencies / rotary.factor
        elif rotary.scaling == "llama3":
            frequencies = _llama3(frequencies, rotary)
        return frequencies.to(device)


def _llama3(frequencies: Tensor, rotary: Rotary) -> Tensor:
    """Llama 3.1's scaling: divide long wavelengths by the factor, keep short ones, blend between."""
    turns = rotary.original_max_positions / (2 * math.pi / frequencies)  # over the original context
    kept = ((turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / rotary.factor + kept * frequencies


Rotation = tuple[Tensor, Tensor]  # cos and sin, as `cos_sin` gives them


def cos_sin(rotary: Rotary, positions_T: Tensor) -> Rotation:
    """Return cos and sin, float32 [T, 1, K/2] each, of int64 positions [T]."""
    angles = positions_T[:, None, None].float() * inverse_frequencies(rotary, positions_T.device)
    return angles.cos(), angles.sin()


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair by its position's angle, in float32 if x is bf16; return [T, H, K] in the dtype of x."""
    if bf16_passes.fits(x_THK):
        return bf16_passes.rotate(x_THK, cos, sin)
    a, b = x_THK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_THK.dtype)
