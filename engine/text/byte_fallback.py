"""Decode tokens with byte fallback ("<0xE0>", SentencePiece) without losing whole characters.

The tokenizers library joins neighbouring byte tokens; if they are not valid UTF-8 as a whole, it writes U+FFFD for each
of them, so one wrong byte loses its neighbours. This file decodes them as Python does with errors="replace", as the
library does for byte-level tokenizers. More tokens then never change a whole character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class _Ids(NamedTuple):
    byte_of: dict[int, int]  # empty if the decoder has no byte tokens
    special: frozenset[int]


_known: WeakKeyDictionary[Tokenizer, _Ids] = WeakKeyDictionary()


def decode_tokens(backend: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens without special ones. Invalid UTF-8 becomes U+FFFD."""
    if backend not in _known:
        _known[backend] = _find(backend)
    byte_of, special = _known[backend]
    if not byte_of:
        return backend.decode(ids, skip_special_tokens=True)
    text = ""
    for are_bytes, run in groupby((i for i in ids if i not in special), byte_of.__contains__):
        some = list(run)
        text += bytes(byte_of[i] for i in some).decode("utf-8", "replace") if are_bytes else backend.decode(some)
    return text


def _find(backend: Tokenizer) -> _Ids:
    special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
    decoder = json.loads(backend.to_str())["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    if not any(part.get("type") == "ByteFallback" for part in parts):
        return _Ids({}, special)
    matches = ((BYTE_TOKEN.fullmatch(piece), i) for piece, i in backend.get_vocab().items())
    return _Ids({i: int(match[1], 16) for match, i in matches if match}, special)
