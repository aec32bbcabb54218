"""Tensors in the Hugging Face files: safetensors or .bin, single or sharded, read one at a time, written in shards."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import UserError

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class StoredTensor(NamedTuple):
    """A tensor on disk: its shape is known, its values are read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by its stored name; safetensors are preferred to .bin.

    The files are mapped into memory, not read: only the pages of the tensors asked for are touched. Raises UserError
    for a directory without weights, an index that names a missing shard, or a file that is damaged or holds more than
    plain weights.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _files(directory):
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    return tensors


def _files(directory: Path) -> list[Path]:
    for single, index in zip(SINGLE, INDEX):
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            return _shards(directory / index)
    raise UserError(f"{directory} holds no weights: expected one of {', '.join(SINGLE + INDEX)}")


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index} has no weight_map from names to files: download it again")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise UserError(f"{index} names {len(absent)} files that are not there, first {absent[0]}: download them again")
    return files


def _read_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        handle = safe_open(file, framework="pt", device="cpu")
        return {
            name: StoredTensor(tuple(handle.get_slice(name).get_shape()), lambda n=name: handle.get_tensor(n))
            for name in handle.keys()  # noqa: SIM118 (a handle is no mapping)
        }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is cut short or no safetensors file ({one_line(error)}): download it again") from error


def _read_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        # Only the zip format, which torch has written since 1.6, can be mapped instead of read whole.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file} is cut short or not plain weights ({one_line(error)}): download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{file} is not a table of tensors: expected the weights of a model")
    return {name: StoredTensor(tuple(t.shape), lambda t=t: t) for name, t in tensors.items()}


def write_weights(directory: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    """Write safetensors, in one file or, above max_shard_bytes, in shards with an index.

    Tensors are brought to the host one shard at a time. A single tensor larger than a shard gets one of its own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file = SINGLE[0] if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        on_host = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(on_host, directory / file, metadata={"format": "pt"})  # transformers refuses files without the format
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict:
    """A JSON object from a file. Raises UserError naming the file when it holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({one_line(error)}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a JSON {type(content).__name__}, expected an object: download it again")
    return content


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def one_line(error: BaseException) -> str:
    """The first line of an error, short enough to be part of one of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
