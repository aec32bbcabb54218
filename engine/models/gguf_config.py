"""A model's config as the fields of a GGUF file, and back.

Some facts are not in a file but in the programs that read it: every fourth layer of SmolLM 3 has no rotary embedding,
Gemma 3 scales its attention by the head size. A config that differs in such a fact is refused when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.models.config_rules import check_config
from engine.models.decoder import head_size_of
from engine.models.rotary import Rotary, inverse_frequencies, rope_fields

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# transformers' model_type -> the format's name of the architecture.
ARCHITECTURES = {name: name for name in ("llama", "qwen2", "qwen3", "bloom", "smollm3", "cohere2", "apertus")}
ARCHITECTURES |= {"mistral": "llama", "gemma3_text": "gemma3"}
XIELU = {"alpha_p": "xielu.alpha_p", "alpha_n": "xielu.alpha_n"}  # Apertus: one number for each layer
_NO_ROPE_STEP = 4  # SmolLM 3
_WINDOW_PERIODS = {"gemma3": 6, "cohere2": 4}  # the last layer of each period sees all positions
_LOCAL_BASE = 10_000.0  # Gemma 3: the rotary base of layers with a window
_WIDE_SCALE_LAYERS = 62  # Gemma 3 27B, the one size whose attention is not scaled by the head size


class _Fields:
    """The fields of a file; UserError for one that is missing or not a number."""

    def __init__(self, fields: Mapping[str, Any], file: Path):
        self.fields, self.file, self.kind = fields, file, fields["general.architecture"]

    def __call__(self, name: str, default: Any = None) -> Any:
        value = self.fields.get(f"{self.kind}.{name}", default)
        if value is None:
            raise UserError(f"--gguf {self.file} has no field {self.kind}.{name}: download it again")
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self.refusal(name, "expected one number from 0")
        return _shortest(value) if isinstance(value, float) else value

    def refusal(self, name: str, expected: str) -> UserError:
        value = self.fields.get(f"{self.kind}.{name}")
        return UserError(
            f"--gguf {self.file} has {self.kind}.{name} {value!r:.60}, {expected}: take the model's own directory"
        )


def config_of(fields: Mapping[str, Any], stored: Collection[str], file: Path) -> PretrainedConfig:
    """Return the Hugging Face config that the fields and the names of the stored weights describe.

    UserError for fields that are missing or wrong, or that describe a model that is not supported.
    """
    from transformers import CONFIG_MAPPING

    get = _Fields(fields, file)
    model_type = next(ours for ours, theirs in ARCHITECTURES.items() if theirs == get.kind)
    values: dict[str, Any] = {
        "vocab_size": fields.get(f"{get.kind}.vocab_size") or len(fields.get("tokenizer.ggml.tokens") or ()),
        "hidden_size": get("embedding_length"),
        "tie_word_embeddings": "output.weight" not in stored,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    if model_type == "bloom":
        values |= {"n_layer": get("block_count"), "n_head": get("attention.head_count")}
        values |= {"layer_norm_epsilon": get("attention.layer_norm_epsilon")}
    else:
        values |= _rotary_family(get, stored)
        if model_type == "llama" and (window := fields.get("llama.attention.sliding_window")):
            model_type, values["sliding_window"] = "mistral", window
    try:
        config = CONFIG_MAPPING[model_type](**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"--gguf {file} does not describe a {get.kind} model ({error}): download it again") from error
    check_config(config, file)
    return config


def _rotary_family(get: _Fields, stored: Collection[str]) -> dict[str, Any]:
    """Return the config's values of all families with rotary embedding."""
    width, heads, layers = get("embedding_length"), get("attention.head_count"), get("block_count")
    if not heads:
        raise get.refusal("attention.head_count", "expected 1 or more")
    head_size = get("attention.key_length", width // heads)
    if get("rope.dimension_count", head_size) != head_size:
        raise get.refusal("rope.dimension_count", f"supported are only heads rotated whole ({head_size})")
    values: dict[str, Any] = {
        "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": head_size,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "intermediate_size": get("feed_forward_length"), "max_position_embeddings": get("context_length"),
        "rope_parameters": _rope(get),
    }  # fmt: skip
    if get.kind == "cohere2":
        values |= {"layer_norm_eps": get("attention.layer_norm_epsilon"), "logit_scale": get("logit_scale")}
    else:
        values["rms_norm_eps"] = get("attention.layer_norm_rms_epsilon")
    if get.kind != "qwen2":  # whose biases are always there
        values["attention_bias"] = "blk.0.attn_q.bias" in stored
    if get.kind in ("llama", "smollm3"):
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in stored
    if get.kind == "smollm3":
        values |= {"no_rope_layer_interval": _NO_ROPE_STEP, "use_sliding_window": False}
    if get.kind in _WINDOW_PERIODS:
        values |= {"sliding_window": get("attention.sliding_window"), "layer_types": _layer_types(get, layers)}
    if get.kind == "gemma3":
        values["query_pre_attn_scalar"] = width // heads if layers == _WIDE_SCALE_LAYERS else head_size
        local = {"rope_type": "default", "rope_theta": float(get("rope.freq_base_swa", _LOCAL_BASE))}
        values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}
        if cap := get("final_logit_softcapping", 0.0):
            values["final_logit_softcapping"] = cap  # which the model then refuses
    return values


def _rope(get: _Fields) -> dict[str, Any]:
    """Return the config's `rope_parameters`, except for Llama 3's scaling, which is a tensor of the file."""
    rope = {"rope_type": "default", "rope_theta": float(get("rope.freq_base", 10_000.0))}
    scaling = get.fields.get(f"{get.kind}.rope.scaling.type", "none")
    if scaling == "none":
        return rope
    if scaling not in ("linear", "yarn"):
        raise get.refusal("rope.scaling.type", "supported are none, linear and yarn")
    factor = float(get("rope.scaling.factor"))
    rope |= {"rope_type": scaling, "factor": factor}
    if scaling == "yarn":
        for name, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
            if get(f"rope.scaling.{name}", neutral) != neutral:
                raise get.refusal(f"rope.scaling.{name}", f"supported is {neutral}")
        rope["original_max_position_embeddings"] = get(
            "rope.scaling.original_context_length", get("context_length")
        )  # fmt: skip
        for name in ("beta_fast", "beta_slow"):
            if beta := get(f"rope.scaling.yarn_{name}", 0.0):
                rope[name] = beta
        if (share := get("rope.scaling.attn_factor", 1.0)) != 1.0:
            rope["attention_factor"] = share * _usual_amplitude(factor)
    return rope


def _layer_types(get: _Fields, layers: int) -> list[str]:
    """Return transformers' name of each layer's kind, from a period or from one truth value for each layer."""
    name = "attention.sliding_window_pattern"
    pattern = get.fields.get(f"{get.kind}.{name}", _WINDOW_PERIODS[get.kind])
    if not isinstance(pattern, list):
        if not isinstance(pattern, int) or pattern < 1:
            raise get.refusal(name, "expected a period or a list")
        pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    if len(pattern) != layers:
        raise get.refusal(name, f"expected {layers} values")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def fields_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields that describe a config: the inverse of `config_of`. UserError if the format has none for it."""
    kind = ARCHITECTURES[config.model_type]
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "attention.head_count": config.num_attention_heads,
    }  # fmt: skip
    if kind == "bloom":
        if config.apply_residual_connection_post_layernorm:
            raise _no_field("apply_residual_connection_post_layernorm", True)
        fields |= {"feed_forward_length": 4 * config.hidden_size, "context_length": 2048}
        fields["attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
    else:
        head_size = head_size_of(config)
        fields |= {
            "attention.head_count_kv": config.num_key_value_heads, "feed_forward_length": config.intermediate_size,
            "context_length": config.max_position_embeddings,
            "attention.key_length": head_size, "attention.value_length": head_size,
            "rope.dimension_count": head_size, **_rope_of(config, head_size), **_own_fields(config, head_size),
        }  # fmt: skip
        if kind != "cohere2":
            fields["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    return {"general.name": kind, **{f"{kind}.{name}": value for name, value in fields.items()}}


def _own_fields(config: PretrainedConfig, head_size: int) -> dict[str, Any]:
    """Return the fields of one family, and refuse what a file of that family cannot say."""
    kinds, layers = getattr(config, "layer_types", None) or [], config.num_hidden_layers
    if config.model_type == "mistral":
        return {"attention.sliding_window": config.sliding_window} if config.sliding_window else {}
    if config.model_type == "smollm3":
        every = [int((i + 1) % _NO_ROPE_STEP != 0) for i in range(layers)]
        if config.no_rope_layers != every:
            raise _no_field("no_rope_layers", config.no_rope_layers, every)
    kind = ARCHITECTURES[config.model_type]
    if kind not in _WINDOW_PERIODS:
        if "sliding_attention" in kinds:
            raise _no_field("layer_types", kinds, "full_attention in each layer")
        return {}
    fields: dict[str, Any] = {"attention.sliding_window": config.sliding_window}
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    if kinds != ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]:
        raise _no_field("layer_types", kinds, "one full_attention layer at the end of each period")
    default = _WINDOW_PERIODS[kind]
    if period != default and not (period > layers and default > layers):
        fields["attention.sliding_window_pattern"] = period
    if kind == "cohere2":
        if not config.tie_word_embeddings:
            raise _no_field("tie_word_embeddings", False, True)
        return {
            **fields, "logit_scale": float(config.logit_scale),
            "attention.layer_norm_epsilon": float(config.layer_norm_eps),
        }  # fmt: skip
    scale = config.hidden_size // config.num_attention_heads if layers == _WIDE_SCALE_LAYERS else head_size
    if config.query_pre_attn_scalar != scale:
        raise _no_field("query_pre_attn_scalar", config.query_pre_attn_scalar, scale)
    local = Rotary.from_config(config, head_size, "sliding_attention")
    if local.scaling != "default":
        raise _no_field("rope_parameters.sliding_attention.rope_type", local.scaling, "default")
    return fields if local.theta == _LOCAL_BASE else {**fields, "rope.freq_base_swa": local.theta}


def _rope_of(config: PretrainedConfig, head_size: int) -> dict[str, Any]:
    """Return the fields of the rotary embedding. The format knows no "dynamic": up to the context length it is none."""
    rotary = Rotary.from_config(config, head_size)
    fields: dict[str, Any] = {"rope.freq_base": rotary.theta}
    if rotary.scaling in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rotary.scaling, "rope.scaling.factor": rotary.factor}
    if rotary.scaling == "yarn":
        given = rope_fields(config)
        if not given.get("truncate", True):
            raise _no_field("rope_parameters.truncate", False, True)
        fields["rope.scaling.original_context_length"] = int(
            given.get("original_max_position_embeddings") or config.max_position_embeddings
        )
        for name in ("beta_fast", "beta_slow"):
            if given.get(name):
                fields[f"rope.scaling.yarn_{name}"] = float(given[name])
        share = rotary.amplitude / _usual_amplitude(rotary.factor)
        if not math.isclose(share, 1.0, rel_tol=1e-9):
            fields["rope.scaling.attn_factor"] = share
    return fields


def _usual_amplitude(factor: float) -> float:
    """Return what YaRN multiplies cos and sin by; readers of the format multiply their `attn_factor` by it."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_divisors(config: PretrainedConfig) -> Tensor | None:
    """float32 [K/2]: what Llama 3's scaling divides each frequency by; None without it."""
    if config.model_type == "bloom":
        return None
    rotary = Rotary.from_config(config, head_size_of(config))
    if rotary.scaling != "llama3":
        return None
    cpu = torch.device("cpu")
    plain = inverse_frequencies(Rotary(rotary.head_size, rotary.theta), cpu)
    return plain / inverse_frequencies(rotary, cpu)


def add_llama3_scaling(config: PretrainedConfig, divisors: np.ndarray, file: Path) -> None:
    """The file holds only the result of the scaling: find the published constants that give it."""
    published = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = {"original_max_position_embeddings": 8192, "factor": round(float(divisors.max()), 4)}
    config.rope_parameters = {**config.rope_parameters, **published, **original}
    found = llama3_divisors(config).numpy()
    if found.shape != divisors.shape or not np.allclose(found, divisors, rtol=1e-4):
        raise UserError(f"--gguf {file} has an unknown rotary scaling: take the model's own directory")


def _no_field(name: str, value: Any, only: Any = None) -> UserError:
    also = "" if only is None else f", which is always {only!s:.80} there"
    return UserError(
        f"{name} is {value!s:.80}: the GGUF format has no field for it{also}; keep the Hugging Face directory"
    )


def _shortest(value: float) -> float:
    """Return the shortest decimal with the same float32: files hold 9.999999974752427e-07 for 1e-6."""
    return float(str(np.float32(value)))
