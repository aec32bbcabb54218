"""The longest sequence that a model serves, and the field of its config.json that limits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engine.base.errors import UserError
from engine.models.rotary import rope_fields

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LengthLimit(NamedTuple):
    """A number of tokens, and the config field it comes from."""

    tokens: int
    field: str


def length_limit(config: PretrainedConfig) -> LengthLimit | None:
    """Return the limit; None without one, as for BLOOM with ALiBi."""
    if config.model_type == "bloom":
        return None
    return LengthLimit(_trained_positions(config), "max_position_embeddings")


def check_length(config: PretrainedConfig, length: int) -> None:
    """UserError for a sequence that is longer than the model serves."""
    limit = length_limit(config)
    if limit is not None and length > limit.tokens:
        raise UserError(
            f"a sequence has {length} tokens, the model serves {limit.tokens} ({limit.field} in its config.json): "
            "lower the maximum length"
        )


def _trained_positions(config: PretrainedConfig) -> int:
    """Return max_position_embeddings, times the factor of a rotary scaling if it is the length before scaling.

    It is the length after scaling if the scaling has a smaller original length, as in LLaMA 3.1.
    """
    positions, fields = config.max_position_embeddings, rope_fields(config)
    if config.model_type == "gemma3_text" or fields.get("rope_type") == "dynamic":
        return positions  # Gemma's is the length after scaling; "dynamic" begins to scale there
    original = fields.get("original_max_position_embeddings") or positions
    return positions if original < positions else int(positions * (fields.get("factor") or 1.0))
