"""Strategies for corrupted files: valid files damaged as by disks and other programs, and random bytes."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

from engine.base.frames import pack_frame

# Placeholders for JSON text that json.dumps cannot write; `text_of` replaces them.
DEEP, DEEP_OBJECT, HUGE, ENDLESS, TWICE = "@deep@", "@deep object@", "@huge@", "@endless@", "@twice@"
AS_TEXT = {
    f'"{DEEP}"': "[" * 3000 + "]" * 3000,
    f'"{DEEP_OBJECT}"': '{"a":' * 150 + "1" + "}" * 150,
    f'"{HUGE}"': "9" * 400,
    f'"{ENDLESS}"': "9" * 5000,
    f'"{TWICE}"': '{"a": 1, "b": 2, "a": 3}',
}
ODD_STRINGS = (
    "",
    " ",
    "\0",
    "\ud83d",
    "\udcff",
    "../../x",
    "/etc/passwd",
    "a" * 300,
    "नेपाल",
    "{instruction}",
    "1e400",
    "-",
)
ODD_NUMBERS = (0, -1, 1, 2, 3, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.5, 1e-320, 1e308, float("inf"), float("nan"))
ODD_VALUES = (
    *(None, True, False, [], {}, [[]], [{}], {"": ""}, {"a": [1, None]}, [None, 1, "x"]),
    *(DEEP, DEEP_OBJECT, HUGE, ENDLESS, TWICE, *ODD_STRINGS, *ODD_NUMBERS),
)
EXTREMES = (
    b"\xff" * 8,
    b"\0" * 8,
    b"\xff" * 4,
    b"\0" * 4,
    b"\x7f" + b"\xff" * 7,
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"\\",
    b"\xed\xa0\x80",
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside `value`."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from nodes(child, (*path, key))


@st.composite
def values(draw: st.DrawFn, valid: Any) -> Any:
    """Draw a valid value with one to three parts replaced, deleted, repeated, renamed, wrapped or retyped."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(nodes(value))
        if not paths:
            return draw(st.sampled_from(ODD_VALUES))
        *parents, key = paths[draw(st.integers(0, len(paths) - 1))]
        holder = value
        for step in parents:
            holder = holder[step]
        how = draw(st.integers(0, 7))
        if how <= 2:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        elif how == 3:
            del holder[key]
        elif how == 4 and isinstance(holder, dict):
            holder[draw(st.sampled_from(ODD_STRINGS))] = holder.pop(key)
        elif how == 5:
            holder[key] = str(holder[key]) if draw(st.booleans()) else [holder[key]]
        elif how == 6 and isinstance(holder, list):
            holder += [copy.deepcopy(holder[key])] * draw(st.sampled_from((1, 40)))
        else:
            *others, last = paths[draw(st.integers(0, len(paths) - 1))]
            source = value
            for step in others:
                source = source[step] if isinstance(source, dict | list) and has_step(source, step) else None
            if isinstance(source, dict | list) and has_step(source, last):
                holder[key] = copy.deepcopy(source[last])
    return value


def has_step(holder: dict | list, step: Any) -> bool:
    return step in holder if isinstance(holder, dict) else isinstance(step, int) and step < len(holder)


def text_of(value: Any) -> str:
    """Return a corrupted value as JSON text, which may be invalid."""
    text = json.dumps(value)
    for name, instead in AS_TEXT.items():
        text = text.replace(name, instead)
    return text


@st.composite
def raw(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a valid file's bytes with one to four cuts, bit flips, splices, repeats and insertions."""
    data = valid
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        end = min(len(data), start + draw(st.integers(1, 60)))
        how = draw(st.integers(0, 7))
        if how == 0:
            data = data[:start]
        elif how == 1:
            data = data[:start] + bytes([data[start] ^ (1 << draw(st.integers(0, 7)))]) + data[start + 1 :]
        elif how == 2:
            data = data[:start] + data[end:]
        elif how == 3:
            data = data[:start] + data[start:end] * 2 + data[end:]
        elif how == 4:
            data = data[:start] + draw(st.binary(max_size=20)) + data[start:]
        elif how == 5:
            odd = draw(st.sampled_from(EXTREMES))
            data = data[:start] + odd + data[start + len(odd) :]
        elif how == 6:
            data = data[start:]
        else:
            other = draw(st.integers(0, len(data) - 1))
            data = data[:start] + data[other : other + 60] + data[end:]
    return data


class Inputs(NamedTuple):
    """The bytes of a valid file, and a strategy for corrupted ones."""

    valid: bytes
    corrupted: st.SearchStrategy[bytes]


def any_bytes(valid: bytes) -> Inputs:
    """Return inputs of any format: random bytes, and the valid bytes corrupted."""
    return Inputs(valid, st.one_of(st.binary(max_size=200), raw(valid), raw(valid)))


def json_file(valid: Any) -> Inputs:
    """Return inputs for a file with one JSON value."""
    text = json.dumps(valid, ensure_ascii=False).encode()
    odd = values(valid).map(text_of).map(str.encode)
    return Inputs(text, st.one_of(any_bytes(text).corrupted, odd, odd))


def jsonl_file(valid: list[Any]) -> Inputs:
    """Return inputs for a file with one JSON value per line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in valid).encode()
    odd = values(valid).map(as_list).map(lambda rows: "".join(f"{text_of(row)}\n" for row in rows).encode())
    return Inputs(text, st.one_of(any_bytes(text).corrupted, odd, odd))


def frames_file(valid: list[dict[str, Any]]) -> Inputs:
    """Return inputs for a file of frames (engine/base/frames.py), some with corrupted payloads and valid checksums."""
    data = b"".join(map(_frame, valid))
    odd = values(valid).map(as_list).map(lambda payloads: b"".join(map(_frame, payloads)))
    return Inputs(data, st.one_of(any_bytes(data).corrupted, odd, odd))


def gzip_file(plain: Inputs) -> Inputs:
    """Return inputs for a gzip file, corrupted before or after compression."""
    data = gzip.compress(plain.valid, mtime=0)
    packed = plain.corrupted.map(lambda found: gzip.compress(found, 1, mtime=0))
    return Inputs(data, st.one_of(packed, any_bytes(data).corrupted))


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _frame(payload: Any) -> bytes:
    try:
        return pack_frame(payload)
    except (OverflowError, UnicodeEncodeError):  # msgpack cannot encode it
        return pack_frame([str(payload).encode("utf-8", "replace")[:50]])
