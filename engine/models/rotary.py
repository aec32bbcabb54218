"""Rotary position embedding (Su et al. 2021): frequencies from a config, cos and sin of positions, the rotation.

Pairs are (i, i + K/2), as in Hugging Face checkpoints of the LLaMA family. Frequencies are float32, in the published
order of operations: one unit in the last place is 1e-4 rad at position 2,000, and models were trained with that
rounding. They are not module buffers, because DeepSpeed casts those to bf16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from kernels import bf16_passes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
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
    amplitude: float = 1.0  # of cos and sin
    blend: tuple[float, float] = (0.0, 0.0)  # YaRN: the last pair of full frequency, the first one of divided frequency

    @classmethod
    def from_config(cls, config: PretrainedConfig, head_size: int, layer_type: str | None = None) -> Rotary:
        """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before it).

        layer_type selects the parameters in a config that has some for each type of layer. Raises UserError for a
        scaling that is not in SCALINGS, or lacks one of its numbers.
        """
        fields = rope_fields(config, layer_type)
        theta = float(fields.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)
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
        numbers: dict[str, Any] = {name: float(fields[name]) for name in SCALINGS[scaling]}
        if scaling in ("llama3", "yarn"):
            original = int(fields.get("original_max_position_embeddings") or config.max_position_embeddings)
        if scaling == "llama3":
            if numbers["low_freq_factor"] == numbers["high_freq_factor"]:
                raise UserError("rotary scaling 'llama3' has low_freq_factor equal to high_freq_factor: correct one")
            numbers["original_max_positions"] = original
        elif scaling == "yarn":
            if theta <= 1:
                raise UserError(f"rope_theta is {theta:g}, rotary scaling 'yarn' takes its logarithm: give more than 1")
            numbers["amplitude"] = _yarn_amplitude(fields)
            numbers["blend"] = _yarn_blend(fields, head_size, theta, original)
        return cls(head_size, theta, scaling, **numbers)


def rope_fields(config: PretrainedConfig, layer_type: str | None = None) -> Mapping[str, Any]:
    """Return the rotary fields of a config under any of their names, of one type of layer if it has several."""
    fields = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(fields.get(layer_type or "full_attention"), Mapping):
        return fields[layer_type or "full_attention"]
    return fields


@cache
def inverse_frequencies(rotary: Rotary, device: torch.device) -> Tensor:
    """Return float32 [K/2]: radians per position of each pair, cached for the life of the process."""
    # Generation may call first: a cached inference tensor could not be used in training.
    with torch.inference_mode(False):
        exponents = torch.arange(0, rotary.head_size, 2, dtype=torch.float32, device="cpu") / rotary.head_size
        powers = rotary.theta**exponents
        frequencies = 1.0 / powers
        # "dynamic" changes frequencies beyond max_position_embeddings only, and no sequence is longer.
        if rotary.scaling == "linear":
            frequencies = frequencies / rotary.factor
        elif rotary.scaling == "llama3":
            frequencies = _llama3(frequencies, rotary)
        elif rotary.scaling == "yarn":
            frequencies = _yarn(powers, rotary)
        return frequencies.to(device)


def _llama3(frequencies: Tensor, rotary: Rotary) -> Tensor:
    """Llama 3.1's scaling: divide long wavelengths by the factor, keep short ones, blend between."""
    turns = rotary.original_max_positions / (2 * math.pi / frequencies)  # over the original context
    kept = ((turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / rotary.factor + kept * frequencies


def _yarn(powers: Tensor, rotary: Rotary) -> Tensor:
    """YaRN (Peng et al. 2023): like llama3, but the blend is linear in the number of the pair."""
    first, last = rotary.blend
    kept = 1 - ((torch.arange(len(powers), dtype=torch.float32, device="cpu") - first) / (last - first)).clamp(0, 1)
    return (1.0 / (rotary.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def _yarn_blend(fields: Mapping[str, Any], head_size: int, theta: float, original: int) -> tuple[float, float]:
    """Return the pairs that turn beta_fast (32) and beta_slow (1) times over the original context."""
    fast, slow = fields.get("beta_fast") or 32.0, fields.get("beta_slow") or 1.0
    first, last = (
        head_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    )
    if fields.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_size - 1)
    return first, last + 0.001 * (first == last)  # as published: no division by zero


def _yarn_amplitude(fields: Mapping[str, Any]) -> float:
    """Return what cos and sin are multiplied by: 0.1 ln(factor) + 1, or what the config says instead."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(fields["factor"]) + 1.0 if fields["factor"] > 1 else 1.0

    if fields.get("attention_factor") is not None:
        return float(fields["attention_factor"])
    weight, weight_all = fields.get("mscale"), fields.get("mscale_all_dim")
    return of(weight) / of(weight_all) if weight and weight_all else of(1.0)


Rotation = tuple[Tensor, Tensor]  # cos and sin, as `cos_sin` gives them
Rotations = dict[Rotary, Rotation]  # of the layers of a model: one, or two where some layers have another base


def rotations_of(layers: Iterable[nn.Module], positions_T: Tensor) -> Rotations:
    """Return cos and sin of the positions for each `rotary` of the layers."""
    return {rotary: cos_sin(rotary, positions_T) for rotary in {block.rotary for block in layers} if rotary}


def cos_sin(rotary: Rotary, positions_T: Tensor) -> Rotation:
    """Return cos and sin, float32 [T, 1, K/2] each, of int64 positions [T]."""
    angles = positions_T[:, None, None].float() * inverse_frequencies(rotary, positions_T.device)
    if rotary.amplitude == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * rotary.amplitude, angles.sin() * rotary.amplitude


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair by its position's angle, in float32 if x is bf16; return [T, H, K] in the dtype of x."""
    if bf16_passes.fits(x_THK):
        return bf16_passes.rotate(x_THK, cos, sin)
    a, b = x_THK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_THK.dtype)


def rotate_interleaved(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate`, with the pairs (2i, 2i + 1), as in Cohere's checkpoints."""
    a, b = x_THK[..., 0::2], x_THK[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x_THK.dtype)
