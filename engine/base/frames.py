"""Frames: msgpack maps in an append-only file, each with length and checksum, readable after damaged bytes.

A frame is  magic (4 bytes) | length (u32, little-endian) | CRC-32 of length and payload (u32) | payload (msgpack map).
The magic begins with 0xFF, which UTF-8 text never contains, so damage ends at the next frame and loses only the frames
it touches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack

MAGIC = b"\xffOKJ"
_HEADER = struct.Struct("<4sII")


def pack_frame(payload: dict[str, Any]) -> bytes:
    """Encode one frame. UnicodeEncodeError for text with a lone surrogate."""
    data = msgpack.packb(payload)
    length = struct.pack("<I", len(data))
    return MAGIC + length + struct.pack("<I", zlib.crc32(data, zlib.crc32(length))) + data


def scan_frames(data: bytes | memoryview | Any) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Yield (offset, length, payload) for each part of a file; payload is None where the bytes are not a whole frame.

    data: bytes or an mmap.
    """
    offset = damaged_from = 0
    while offset < len(data):
        end, payload = _frame_at(data, offset)
        if payload is None:
            following = data.find(MAGIC, offset + 1)
            offset = following if following >= 0 else len(data)
            continue
        if damaged_from < offset:
            yield damaged_from, offset - damaged_from, None
        yield offset, end - offset, payload
        offset = damaged_from = end
    if damaged_from < offset:
        yield damaged_from, offset - damaged_from, None


def read_frame(data: bytes) -> dict[str, Any] | None:
    """Decode exactly one frame; None if the bytes are damaged."""
    end, payload = _frame_at(data, 0)
    return payload if end == len(data) else None


def _frame_at(data: Any, offset: int) -> tuple[int, dict[str, Any] | None]:
    start = offset + _HEADER.size
    header = data[offset:start]
    if len(header) < _HEADER.size:
        return offset, None
    magic, length, checksum = _HEADER.unpack(header)
    if magic != MAGIC or start + length > len(data):
        return offset, None
    body = data[start : start + length]
    if zlib.crc32(body, zlib.crc32(header[4:8])) != checksum:
        return offset, None
    try:
        payload = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException):  # a valid checksum around something that pack_frame never writes
        return offset, None
    return (start + length, payload) if isinstance(payload, dict) else (offset, None)


def is_frame(payload: dict[str, Any], fields: Mapping[str, type | tuple[type, ...]]) -> bool:
    """Return whether a payload has all fields with their types; whole numbers must not be negative."""
    return all(
        isinstance(value := payload.get(name), kind) and (kind is not int or (value is not True and value >= 0))
        for name, kind in fields.items()
    )
