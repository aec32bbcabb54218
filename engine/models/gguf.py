"""GGUF files in and out: the config, the weights and the tokenizer of one file (llama.cpp, Ollama).

Weights are dequantised to float32 and then cast. The format stores the query and key rows of LLaMA and SmolLM 3 in
interleaved order, BLOOM's fused projection as queries, keys, values, Gemma's norms with 1 added, and the numbers of
Apertus's activation as fields. All are put back as Hugging Face has them.
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
from engine.models.gguf_config import ARCHITECTURES, XIELU, add_llama3_scaling, config_of, fields_of, llama3_divisors
from engine.models.hf import empty_model
from engine.models.names import TABLES, hugging_face_name

if TYPE_CHECKING:
    import gguf
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

HALVES_INTERLEAVED = ("llama", "smollm3")  # architectures whose query and key rows the format reorders
NORMS_PLUS_ONE = ("gemma3",)  # architectures whose norms the format stores as their factor, not its difference from 1
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
        reader = _reader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except _BAD_FILE as error:
        raise UserError(f"--gguf {file} is not a whole GGUF file ({error}): download it again") from error
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES.values():
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise UserError(f"--gguf {file} has the architecture {architecture!r:.60}: supported are {known}")
    frequencies = stored.pop(_FREQUENCIES, None)
    config = config_of(fields, stored, file)
    if frequencies is not None:
        add_llama3_scaling(config, np.array(frequencies.data, dtype=np.float32), file)
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
        weights[ours] = _converted(weight, ours, config, architecture, back=True).to(dtype).contiguous()
    weights |= {ours: weight.to(dtype) for ours, weight in _numbers_of(fields, config, file).items()}
    model.load_state_dict(weights, assign=True)
    return model, fields


def _reader(file: Path) -> gguf.GGUFReader:
    """Return the package's reader on a plain array: slicing numpy's class for mapped files takes three times longer."""
    import gguf

    class PlainReader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self.plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self.plain = np.asarray(mapped)

    return PlainReader(file)


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
    architecture, parameters = ARCHITECTURES[config.model_type], dict(model.named_parameters())
    writer = gguf.GGUFWriter(file, architecture)
    try:
        fields = {**fields_of(config), **_number_fields(parameters, config)}
        for name, value in {**fields, **tokenizer_fields(tokenizer, config.vocab_size)}.items():
            _add(writer, name, value)
        for ours, name in names_of(model, architecture).items():
            weight = _converted(parameters[ours].detach().float(), ours, config, architecture)
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
    """{our name: the format's name} of each parameter that is a tensor of the file."""
    import gguf

    table = TABLES[model.config.model_type]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(kinds[architecture], model.num_layers)
    names = {}
    for ours, _ in model.named_parameters():
        if ours.rpartition(".")[2] in XIELU:
            continue
        theirs = hugging_face_name(table, ours)
        found = [known.get_name(name, try_suffixes=(".weight", ".bias")) for name in (table.prefix + theirs, theirs)]
        names[ours] = found[0] or found[1]
        assert names[ours], ours
    return names


def _converted(weight: Tensor, ours: str, config: PretrainedConfig, architecture: str, back: bool = False) -> Tensor:
    """Return a weight as the format stores it, or with `back` as Hugging Face does."""
    module = ours.split(".")[-2]
    if architecture in NORMS_PLUS_ONE and module.endswith("norm"):
        return weight - 1 if back else weight + 1
    if architecture in HALVES_INTERLEAVED and module in ("q", "k"):
        heads = config.num_attention_heads if module == "q" else config.num_key_value_heads
        inner = (-1, 2) if back else (2, -1)
        return weight.unflatten(0, (heads, *inner)).transpose(1, 2).flatten(0, 2)
    if architecture == "bloom" and module == "qkv":
        outer = (3, config.num_attention_heads) if back else (config.num_attention_heads, 3)
        return weight.unflatten(0, (*outer, -1)).transpose(0, 1).flatten(0, 2)
    return weight


def _number_fields(parameters: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, list[float]]:
    """Return the fields that hold parameters: one list for each number of Apertus's activation, one item a layer."""
    if config.model_type != "apertus":
        return {}
    layers = range(config.num_hidden_layers)
    return {field: [parameters[f"layers.{i}.xielu.{ours}"].item() for i in layers] for ours, field in XIELU.items()}


def _numbers_of(fields: Mapping[str, Any], config: PretrainedConfig, file: Path) -> dict[str, Tensor]:
    """Return the parameters that fields hold, float32 [1] each: the inverse of `_number_fields`."""
    if config.model_type != "apertus":
        return {}
    found = {}
    for ours, field in XIELU.items():
        values = fields.get(field)
        if not isinstance(values, list) or len(values) != config.num_hidden_layers:
            raise UserError(f"--gguf {file} has no list {field} with a number for each layer: download it again")
        found |= {f"layers.{i}.xielu.{ours}": torch.tensor([float(value)]) for i, value in enumerate(values)}
    return found


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
