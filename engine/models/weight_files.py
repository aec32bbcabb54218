"""Tensors in the Hugging Face files: safetensors or .bin, single or sharded, read one at a time, written in shards."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.base.errors import UserError
from engine.base.strict_json import read_object, reason_of

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
# What torch's restricted unpickler and zip reader raise for bytes that are no weights.
_BIN_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)


class StoredTensor(NamedTuple):
    """A tensor on disk: its shape is known, its values are read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by its stored name; safetensors are preferred to .bin.

    The files are mapped into memory, not read: only the pages of the tensors asked for are touched. Raises UserError
    for a directory without weights, an index that names a missing shard or one outside the directory, or a file that is
    damaged or holds more than plain weights.
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
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index} has no weight_map from names to files: download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not _is_inside(index.parent, name):
            raise UserError(f"{index} names the file {name!r:.60} outside its folder: copy the weights into the folder")
    files = [index.parent / name for name in names]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise UserError(f"{index} names {len(absent)} files that are not there, first {absent[0]}: download them again")
    return files


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a shard lies in the folder itself, by its name and, where it is a link, by where that leads.

    Hugging Face's own cache is made of links, from snapshots/REVISION/NAME to blobs/HASH: those are followed.
    """
    if name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > 255 or "/" in name or "\0" in name:
        return False
    home, found = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    return found.parent == home or (home.parent.name == "snapshots" and found.parent == home.parents[1] / "blobs")


def _read_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        handle = safe_open(file, framework="pt", device="cpu")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (a handle is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is cut short or no safetensors file ({reason_of(error)}): download it again"
        ) from error

    def read(name: str) -> Tensor:
        # Other dtypes are quantised weights, which mean nothing without their scales, and some that torch cannot read.
        if (kind := slices[name].get_dtype()) not in SAFETENSORS_FLOATS:
            raise UserError(f"{file} holds {name!r:.60} as {kind}: give weights in {', '.join(SAFETENSORS_FLOATS)}")
        return handle.get_tensor(name)

    return {name: StoredTensor(tuple(part.get_shape()), partial(read, name)) for name, part in slices.items()}


def _read_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        is_zip = zipfile.is_zipfile(file)
        packed = is_zip and _is_compressed(file)
        # Only the zip format, which torch has written since 1.6, can be mapped instead of read whole.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip) if not packed else None
    except _BIN_ERRORS as error:
        raise UserError(f"{file} is cut short or not plain weights ({reason_of(error)}): download it again") from error
    if packed:
        raise UserError(f"{file} is compressed, torch writes weights as they are: download it again")
    if not isinstance(tensors, dict) or not all(isinstance(n, str) and _is_plain(t) for n, t in tensors.items()):
        raise UserError(f"{file} is not a table of tensors: expected the weights of a model")

    def read(name: str) -> Tensor:
        if not (tensor := tensors[name]).is_floating_point():
            raise UserError(f"{file} holds {name!r:.60} as {tensor.dtype}: give weights in floating point")
        return tensor

    return {name: StoredTensor(tuple(tensor.shape), partial(read, name)) for name, tensor in tensors.items()}


def _is_compressed(file: Path) -> bool:
    """Whether a small file could unpack into a large one."""
    with zipfile.ZipFile(file) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose every element is in the file: none that a stride of 0 makes from a few bytes."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


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
        path = directory / file
        path.touch()
        mode = path.stat().st_mode  # as the umask says; safetensors would let the owner alone read the model
        save_file(on_host, path, metadata={"format": "pt"})  # transformers refuses files without the format
        path.chmod(mode)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
