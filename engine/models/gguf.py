"""GGUF files in and out: the config, the weights and the tokenizer of one file (llama.cpp, Ollama).

Weights are dequantised to float32 and then cast. The format stores the query and key rows of LLaMA in interleaved
order, and BLOOM's fused projection as queries, keys, values; both are put back in Hugging Face's order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.models.config_rules import check_config
from engine.models.hf import empty_model
from engine.models.names import TABLES, hugging_face_name
from engine.models.rotary import Rotary, inverse_frequencies

if TYPE_CHECKING:
    import gguf
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "qwen3", "bloom")
HALVES_INTERLEAVED = ("llama",)  # architectures whose query and key rows the format reorders
_BAD_FILE = (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error)
_FREQUENCIES = "rope_freqs.weight"  # Llama 3's scaling, as one divisor per frequency


def read_gguf(file: Path, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """Return (model on the CPU, all fields of the file).

    UserError for a file that is missing, damaged, or of an architecture that is not supported.
    """
    import gguf

    if not file.is_file():
        raise UserError(f"--gguf {file} is not there: give a .gguf file")
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except _BAD_FILE as error:
        raise UserError(f"--gguf {file} is not a whole GGUF file ({error}): download it again") from error
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"--gguf {file} has the architecture {architecture!r}: supported are {', '.join(ARCHITECTURES)}"
        )
    frequencies = stored.pop(_FREQUENCIES, None)
    config = config_of(fields, stored, file)
    if frequencies is not None:
        _add_llama3_scaling(config, np.array(frequencies.data, dtype=np.float32), file)
    model = empty_model(config, str(file))
    names = names_of(model, architecture)
    missing = [name for name in names.values() if name not in stored]
    unused = stored.keys() - names.values()
    if missing or unused:
        raise UserError(
            f"--gguf {file} does not hold the weights of a {config.model_type} model: missing "
            f"{', '.join(missing[:4]) or 'none'}; unused {', '.join(sorted(unused)[:4]) or 'none'}: download it again"
        )
    shapes = {ours: tuple(p.shape) for ours, p in model.named_parameters()}
    weights = {}
    for ours, name in names.items():
        try:
            weight = torch.from_numpy(np.array(gguf.dequantize(stored[name].data, stored[name].tensor_type)))
        except (*_BAD_FILE, NotImplementedError) as error:
            raise UserError(f"--gguf {file}: {name} cannot be read ({error}): take an F16 or Q8_0 file") from error
        if weight.numel() != np.prod(shapes[ours], dtype=np.int64):
            raise UserError(
                f"--gguf {file}: {name} has shape {tuple(weight.shape)}, expected {shapes[ours]}: download it again"
            )
        weight = weight.reshape(shapes[ours])
        weights[ours] = _reorder(weight, ours, config, architecture, back=True).to(dtype).contiguous()
    model.load_state_dict(weights, assign=True)
    return model, fields


def write_gguf(
    file: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    quantisation: str,
    tokenizer_fields: Callable[..., Any],
) -> None:
    """Write a model and its tokenizer as one GGUF file; matrices as `quantisation`, vectors as float32.

    `quantisation` is "f32", "f16" or "q8_0"; rows that q8_0 does not divide (blocks of 32) stay f16.
    `tokenizer_fields` is engine.text.gguf_tokenizer.fields_of.
    """
    import gguf

    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(file, architecture)
    try:
        for name, value in {**fields_of(config), **tokenizer_fields(tokenizer, config.vocab_size)}.items():
            _add(writer, name, value)
        for ours, name in names_of(model, architecture).items():
            weight = _reorder(dict(model.named_parameters())[ours].detach().float(), ours, config, architecture)
            array, kind = weight.contiguous().numpy(), gguf.GGMLQuantizationType.F32
            if weight.ndim > 1 and quantisation != "f32":
                q8 = quantisation == "q8_0" and weight.shape[-1] % 32 == 0
                kind = gguf.GGMLQuantizationType.Q8_0 if q8 else gguf.GGMLQuantizationType.F16
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        if (frequencies := llama3_divisors(config)) is not None:
            writer.add_tensor(_FREQUENCIES, frequencies.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def names_of(model: nn.Module, architecture: str) -> dict[str, str]:
    """{our name: the format's name} of each parameter."""
    import gguf

    table = TABLES[model.config.model_type]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(kinds[architecture], model.num_layers)
    names = {}
    for ours, _ in model.named_parameters():
        theirs = hugging_face_name(table, ours)
        found = [known.get_name(name, try_suffixes=(".weight", ".bias")) for name in (table.prefix + theirs, theirs)]
        names[ours] = found[0] or found[1]
        assert names[ours], ours
    return names


def config_of(fields: Mapping[str, Any], stored: Mapping[str, gguf.ReaderTensor], file: Path) -> PretrainedConfig:
    """Return the Hugging Face config that the fields describe. UserError for fields that are missing or wrong."""
    from transformers import CONFIG_MAPPING

    kind = fields["general.architecture"]

    def get(name: str, default: Any = None) -> Any:
        value = fields.get(f"{kind}.{name}", default)
        if value is None:
            raise UserError(f"--gguf {file} has no field {kind}.{name}: download it again")
        return value

    tokens = fields.get("tokenizer.ggml.tokens") or ()
    heads, width = get("attention.head_count"), get("embedding_length")
    values: dict[str, Any] = {
        "vocab_size": fields.get(f"{kind}.vocab_size") or len(tokens), "hidden_size": width,
        "tie_word_embeddings": "output.weight" not in stored,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }  # fmt: skip
    if kind == "bloom":
        values |= {"n_layer": get("block_count"), "n_head": heads}
        values |= {"layer_norm_epsilon": get("attention.layer_norm_epsilon")}
    else:
        head_size = fields.get(f"{kind}.attention.key_length") or width // heads
        values |= {
            "num_hidden_layers": get("block_count"), "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "intermediate_size": get("feed_forward_length"), "max_position_embeddings": get("context_length"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "head_dim": head_size, "rope_parameters": _rope(fields, kind, file),
        }  # fmt: skip
        if kind != "qwen2":  # whose biases are always there
            values["attention_bias"] = "blk.0.attn_q.bias" in stored
        if kind == "llama":
            values["mlp_bias"] = "blk.0.ffn_gate.bias" in stored
            if window := fields.get("llama.attention.sliding_window"):
                kind, values["sliding_window"] = "mistral", window
    try:
        config = CONFIG_MAPPING[kind](**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"--gguf {file} does not describe a {kind} model ({error}): download it again") from error
    check_config(config, file)
    return config


def fields_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields that describe a config: the inverse of `config_of`."""
    kind = "llama" if config.model_type == "mistral" else config.model_type
    fields = {
        "general.name": kind,
        f"{kind}.vocab_size": config.vocab_size,
        f"{kind}.embedding_length": config.hidden_size,
    }
    fields |= {
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.attention.head_count": config.num_attention_heads,
    }
    if kind == "bloom":
        if config.apply_residual_connection_post_layernorm:
            raise UserError("apply_residual_connection_post_layernorm is true: the GGUF format has no field for it")
        fields |= {f"{kind}.feed_forward_length": 4 * config.hidden_size, f"{kind}.context_length": 2048}
        return {**fields, f"{kind}.attention.layer_norm_epsilon": float(config.layer_norm_epsilon)}
    rotary = Rotary.from_config(config, _head_size(config))
    fields |= {
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.attention.key_length": _head_size(config), f"{kind}.attention.value_length": _head_size(config),
        f"{kind}.rope.dimension_count": _head_size(config), f"{kind}.rope.freq_base": rotary.theta,
    }  # fmt: skip
    if config.model_type == "mistral" and config.sliding_window:
        fields[f"{kind}.attention.sliding_window"] = config.sliding_window
    if rotary.scaling == "linear":
        fields |= {f"{kind}.rope.scaling.type": "linear", f"{kind}.rope.scaling.factor": rotary.factor}
    return fields


def llama3_divisors(config: PretrainedConfig) -> Tensor | None:
    """float32 [K/2]: what Llama 3's scaling divides each frequency by; None without it."""
    if config.model_type == "bloom":
        return None
    rotary = Rotary.from_config(config, _head_size(config))
    if rotary.scaling != "llama3":
        return None
    cpu = torch.device("cpu")
    plain = inverse_frequencies(Rotary(rotary.head_size, rotary.theta), cpu)
    return plain / inverse_frequencies(rotary, cpu)


def _add_llama3_scaling(config: PretrainedConfig, divisors: np.ndarray, file: Path) -> None:
    """The file holds only the result of the scaling: find the published constants that give it."""
    published = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = {"original_max_position_embeddings": 8192, "factor": float(divisors.max())}
    config.rope_parameters = {**config.rope_parameters, **published, **original}
    if not np.allclose(llama3_divisors(config).numpy(), divisors, rtol=1e-4):
        raise UserError(f"--gguf {file} has an unknown rotary scaling: take the model's own directory")


def _rope(fields: Mapping[str, Any], kind: str, file: Path) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": float(fields.get(f"{kind}.rope.freq_base", 10_000.0))}
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling == "linear":
        return {**rope, "rope_type": "linear", "factor": float(fields[f"{kind}.rope.scaling.factor"])}
    if scaling != "none":
        raise UserError(f"--gguf {file} has rotary scaling {scaling!r}: supported are none and linear")
    return rope


def _reorder(weight: Tensor, ours: str, config: PretrainedConfig, architecture: str, back: bool = False) -> Tensor:
    """Put the rows of a projection into the format's order, or with `back` into Hugging Face's."""
    module, leaf = ours.split(".")[-2:]
    if architecture in HALVES_INTERLEAVED and module in ("q", "k"):
        heads = config.num_attention_heads if module == "q" else config.num_key_value_heads
        inner = (-1, 2) if back else (2, -1)
        return weight.unflatten(0, (heads, *inner)).transpose(1, 2).flatten(0, 2)
    if architecture == "bloom" and module == "qkv":
        outer = (3, config.num_attention_heads) if back else (config.num_attention_heads, 3)
        return weight.unflatten(0, (*outer, -1)).transpose(0, 1).flatten(0, 2)
    return weight


def _head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, str(value))
