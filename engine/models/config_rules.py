"""Check a model's config.json before a model is built, and select the fields that change what is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Upper limits: a hundred times the largest published model of these families. A billion layers would fill the memory
# with empty modules before any weight is read.
SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "intermediate_size": 2**22,
    "head_dim": 2**14,
    "max_position_embeddings": 2**40,
    "sliding_window": 2**40,
    "query_pre_attn_scalar": 2**20,
}
SMALL_NUMBERS = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "initializer_range", "logit_scale")
_ROPE_NUMBERS = (
    *("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
LAYER_TYPES = ("full_attention", "sliding_attention")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Fields that change nothing that is computed here: names, storage and initialisation of weights, special tokens,
# outputs of transformers, dropout (never applied), and the moments of a reward model's scores (read by its scorer). The
# weights show whether a head is tied.
_HARMLESS = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path"),
    *("id2label", "label2id", "num_labels", "problem_type", "initializer_range", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "attention_dropout", "hidden_dropout"),
    *("return_dict", "output_attentions", "output_hidden_states", "use_cache", "is_encoder_decoder"),
    *("chunk_size_feed_forward", "pretraining_tp", "slow_but_exact", "score_mean", "score_std"),
}


def computed_from(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a config that may change what its model computes: all but known harmless ones."""
    return {name: value for name, value in config.to_dict().items() if name not in _HARMLESS}


def check_config(config: PretrainedConfig, file: Path) -> None:
    """UserError for a size below 1 or far too large, or a bad epsilon, rotary number or token id.

    Sizes that a family lacks or derives (None) are skipped.
    """
    for name, largest in SIZES.items():
        value = getattr(config, name, None)
        if value is not None and not (_is_whole(value) and 1 <= value <= largest):
            raise UserError(f"{file} has {name} {value!r:.60}: give a whole number from 1 to {largest:,}")
    for name in SMALL_NUMBERS:
        value = getattr(config, name, 0.0)
        if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 100):
            raise UserError(f"{file} has {name} {value!r:.60}: give a number from 0 to 100")
    for name in TOKEN_IDS:
        value = getattr(config, name, None)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (_is_whole(token) and token < SIZES["vocab_size"]):
                raise UserError(f"{file} has {name} {value!r:.60}: give a token id or a list of them")
    for name, allowed in (("layer_types", LAYER_TYPES), ("no_rope_layers", (0, 1))):
        _check_list(name, getattr(config, name, None), allowed, config.num_hidden_layers, file)
    _check_rotary(config, file)


def _check_list(name: str, values: list[Any] | None, allowed: tuple[Any, ...], layers: int, file: Path) -> None:
    """UserError for a list that has not one of the allowed values for each layer."""
    if values is None:
        return
    if len(values) != layers:
        raise UserError(f"{file} has {len(values)} {name} for {layers} layers: give one for each layer")
    for value in values:
        if value not in allowed:
            raise UserError(f"{file} has {value!r:.60} in {name}: supported are {', '.join(map(str, allowed))}")


def _check_rotary(config: PretrainedConfig, file: Path) -> None:
    """Check the fields of the rotary embedding, under transformers 5's name and the older one."""
    places = {place: getattr(config, place, None) or {} for place in ("rope_parameters", "rope_scaling")}
    for place, fields in list(places.items()):
        if isinstance(fields, Mapping) and set(fields) & set(LAYER_TYPES):  # some for each type of layer
            del places[place]
            places |= {f"{place}.{kind}": inner for kind, inner in fields.items()}
    for place, fields in places.items():
        if not isinstance(fields, Mapping) or not all(
            isinstance(fields.get(n, ""), str) for n in ("rope_type", "type")
        ):
            raise UserError(f"{file} has {place} {fields!r:.60}: give an object with a rope_type")
        for name in _ROPE_NUMBERS:
            if (value := fields.get(name)) is not None and not _is_size(value):
                raise UserError(f"{file} has {place}.{name} {value!r:.60}: give a number above 0")
        original = fields.get("original_max_position_embeddings")
        if original is not None and not (_is_size(original) and original >= 1):
            raise UserError(f"{file} has {place}.original_max_position_embeddings {original!r:.60}: give 1 or more")
    theta = getattr(config, "rope_theta", None)
    if theta is not None and not _is_size(theta):
        raise UserError(f"{file} has rope_theta {theta!r:.60}: give a number above 0")


def refuse_code(fields: Mapping[str, Any], file: Path) -> None:
    """UserError for a file that names Python code to run."""
    if fields.get("auto_map"):
        raise UserError(
            f"{file} names code of its own (auto_map), and none is ever run from a model's folder: remove auto_map if "
            "the weights are those of a plain model, or convert it"
        )


def _is_size(value: object) -> bool:
    """Return whether a value is a number above 0, up to 1e15."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e15


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
