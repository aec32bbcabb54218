"""Split a tokenizer into the rules for starting a text, for continuing one, and for special tokens.

transformers turns "</s>" in any text into the special token. Here, copies of the tokenizer give each special token a
random name, so that it is found only where we write that name. The tokenizers library does everything else: blanks
around special tokens, and the text between them.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.text.templates import Piece

# Before such a text transformers adds no dummy prefix, sentencepiece does. We follow sentencepiece.
_PREFIX_LOST_BEFORE = (" ", "\u2581")


@dataclass(frozen=True)
class Codec:
    """A tokenizer's rules for the parts of a sequence. Neither copy adds BOS or EOS."""

    start: Tokenizer  # starts a text, with the dummy prefix if the tokenizer has one
    middle: Tokenizer  # continues a text, without a dummy prefix
    bos: tuple[int, ...]  # what comes before every text
    loses_prefix: bool
    names: dict[str, str]  # names of special tokens in the two copies
    special: re.Pattern[str]  # finds special tokens in a text

    def encode_start(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of a text as transformers gives them, without BOS."""
        return self.start.encode(self._named(pieces)).ids

    def encode_prompt(self, pieces: Iterable[Piece]) -> list[int]:
        """Like encode_start, with sentencepiece's dummy prefix also before a text that begins with a blank."""
        text = self._named(pieces)
        blank = " " if self.loses_prefix and text.startswith(_PREFIX_LOST_BEFORE) else ""
        return self.start.encode(blank + text).ids if text else []

    def _named(self, pieces: Iterable[Piece]) -> str:
        """Join pieces; special tokens in a template's own text get their names in the copies."""
        return "".join(
            self.special.sub(lambda match: self.names[match[0]], piece.text) if piece.is_own else piece.text
            for piece in pieces
        )


_codecs: WeakKeyDictionary[PreTrainedTokenizerFast, Codec] = WeakKeyDictionary()
_by_content: WeakValueDictionary[bytes, Codec] = WeakValueDictionary()


def codec_of(tokenizer: PreTrainedTokenizerFast) -> Codec:
    """Return the tokenizer's codec, cached; tokenizers with equal content share one.

    With a large vocabulary it takes seconds to make, and a run loads its tokenizer several times: with the model, with
    the reward model, and to try the export.
    """
    if tokenizer not in _codecs:
        text = tokenizer.backend_tokenizer.to_str()
        content = sha256(f"{tokenizer.bos_token_id} {text}".encode()).digest()
        codec = _by_content.get(content) or _make(tokenizer, text)
        _codecs[tokenizer] = _by_content[content] = codec
    return _codecs[tokenizer]


def share_codec(tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer with the same vocabulary and special tokens use the codec of the first, if that has one."""
    if tokenizer in _codecs:
        _codecs[other] = _codecs[tokenizer]


def _make(tokenizer: PreTrainedTokenizerFast, text: str) -> Codec:
    spec = json.loads(text)
    spec.update(truncation=None, padding=None, post_processor=None)
    ids = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
    salt = secrets.token_hex(16)  # cannot occur in a text
    names = {content: f"{salt}{number:06x}" for number, content in enumerate(ids)}
    _rename(spec, names)
    has_prefix, parts = False, {}
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        parts[part], changed = _without_prefix(spec[part])
        has_prefix |= changed and part != "decoder"
    middle = Tokenizer.from_str(json.dumps({**spec, **parts}))
    start = Tokenizer.from_str(json.dumps(spec)) if has_prefix else middle  # a large vocabulary takes seconds to read
    if any(middle.token_to_id(names[content]) != id for content, id in ids.items()):
        raise ValueError("its special tokens have other ids when they are read again")
    starts_with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return Codec(
        start,
        middle,
        (tokenizer.bos_token_id,) if starts_with_bos else (),
        has_prefix and start.encode(" a").ids == start.encode("a").ids,
        names,
        pattern_of(names),
    )


def pattern_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of these texts, longest first; without texts it matches nothing."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _rename(spec: dict[str, Any], names: dict[str, str]) -> None:
    """Rename special tokens in the added tokens and in the vocabulary; ids stay.

    Merges that would produce one from characters are dropped.
    """
    for token in spec["added_tokens"]:
        if token["special"]:
            token["content"] = names[token["content"]]
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if not (a in names or b in names or a + b in names)]


def _without_prefix(part: dict[str, Any] | None) -> tuple[dict[str, Any] | None, bool]:
    """Change a normalizer, pre-tokenizer or decoder so that it neither adds nor removes a leading blank.

    Works on the tokenizers library's file format. Returns whether anything changed.
    """
    if part is None:
        return None, False
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            results = [_without_prefix(child) for child in part[key]]
            kept = [child for child, _ in results if child is not None]
            return {**part, key: kept}, any(changed for _, changed in results)
    if part["type"] == "Prepend" or (part["type"] == "Strip" and part.get("content") == " " and part["start"] > 0):
        return None, True
    if part["type"] == "Metaspace" and part.get("prepend_scheme") != "never":
        return {**part, "prepend_scheme": "never"}, True
    if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
        return {**part, "add_prefix_space": False}, True
    return part, False
