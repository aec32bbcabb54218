"""Frames: msgpack maps in an append-only file, each with its length and a checksum, found again behind damaged bytes.

A frame is  magic (4 bytes) | length (u32, little-endian) | CRC-32 of length and payload (u32) | payload (msgpack map).
The magic begins with 0xFF, which UTF-8 text never holds; a damaged stretch therefore ends at the next frame, and costs
only the frames it touches.
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
    """The bytes of one frame. UnicodeEncodeError for text with a lone surrogate."""
    data = msgpack.packb(payload)
    length = struct.pack("<I", len(data))
    return MAGIC + length + struct.pack("<I", zlib.crc32(data, zlib.crc32(length))) + data


def scan_frames(data: bytes | memoryview | Any) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Each stretch of a file: (offset, length, payload), the payload None where the bytes are no whole frame.

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
    """The payload of exactly one frame, or None where the bytes are damaged."""
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
    except (ValueError, msgpack.UnpackException):  # a right checksum around what pack_frame never writes
        return offset, None
    return (start + length, payload) if isinstance(payload, dict) else (offset, None)


def is_frame(payload: dict[str, Any], fields: Mapping[str, type | tuple[type, ...]]) -> bool:
    """Whether a payload has each of the fields, of its type; whole numbers are not negative."""
    return all(
        isinstance(value := payload.get(name), kind) and (kind is not int or (value is not True and value >= 0))
        for name, kind in fields.items()
    )
