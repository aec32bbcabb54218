"""Read and write tensors in Hugging Face files: safetensors or .bin, single or sharded."""

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
# Errors of torch's restricted unpickler and zip reader for bad files.
_BIN_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)


class StoredTensor(NamedTuple):
    """A tensor on disk: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_weights(directory: Path) -> dict[str, StoredTensor]:
    """List the tensors of a model directory by stored name, from safetensors if present, else .bin.

    Files are memory-mapped, so only requested tensors are read. UserError for a directory without weights, an index
    that names a missing shard or one outside the directory, or a file that is damaged or holds more than plain weights.
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
    """Return whether a shard is inside the folder, by its name and, for a link, by its target.

    Links of Hugging Face's cache, from snapshots/REVISION/NAME to blobs/HASH, are followed.
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
        # Other dtypes are quantised weights, useless without their scales, or unreadable for torch.
        if (kind := slices[name].get_dtype()) not in SAFETENSORS_FLOATS:
            raise UserError(f"{file} holds {name!r:.60} as {kind}: give weights in {', '.join(SAFETENSORS_FLOATS)}")
        return handle.get_tensor(name)

    return {name: StoredTensor(tuple(part.get_shape()), partial(read, name)) for name, part in slices.items()}


def _read_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        is_zip = zipfile.is_zipfile(file)
        packed = is_zip and _is_compressed(file)
        # Only the zip format (torch 1.6 and later) can be memory-mapped.
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
    """Return whether the archive is compressed, so that a small file could unpack into a large one."""
    with zipfile.ZipFile(file) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _is_plain(value: object) -> bool:
    """Return whether all elements of a tensor are in the file (no stride of 0)."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def write_weights(directory: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    """Write safetensors, in one file or, above max_shard_bytes, in shards with an index.

    Tensors are copied to the host one shard at a time. A tensor larger than a shard gets its own.
    """
    write_shards(directory, {n: t.nbytes for n, t in tensors.items()}, lambda name: tensors[name], max_shard_bytes)


def write_shards(
    directory: Path, sizes: Mapping[str, int], read: Callable[[str], Tensor], max_shard_bytes: int
) -> None:
    """As write_weights, for tensors of these sizes in bytes that `read` returns one at a time, a shard in memory."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file = SINGLE[0] if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        on_host = {name: read(name).detach().cpu().contiguous() for name in names}
        path = directory / file
        path.touch()
        mode = path.stat().st_mode  # follow the umask; safetensors would make the file readable for its owner only
        save_file(on_host, path, metadata={"format": "pt"})  # transformers refuses files without the format
        path.chmod(mode)
        weight_map |= dict.fromkeys(names, file)
        del on_host  # before the next shard is read
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
