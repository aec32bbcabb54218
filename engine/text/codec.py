"""A tokenizer taken apart: how it begins a text, how it goes on with one, and what it writes special tokens as.

transformers reads "</s>" in any text as the special token. Here a special token has another, random name in copies of
the tokenizer, so that it is found only where we write that name. All else is left to the tokenizers library: what a
special token does to the blanks around it, and how the text between two of them is encoded.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.text.templates import Piece

# A text that begins so gets no dummy prefix from transformers, and one from sentencepiece, which we follow.
_PREFIX_LOST_BEFORE = (" ", "\u2581")


@dataclass(frozen=True)
class Codec:
    """A tokenizer's own rules, as the parts of a sequence need them. Both copies add neither BOS nor EOS."""

    start: Tokenizer  # begins a text, with the dummy prefix where the tokenizer has one
    middle: Tokenizer  # goes on with a text: without a dummy prefix
    bos: tuple[int, ...]  # what stands before every text
    loses_prefix: bool
    names: dict[str, str]  # of special tokens in the two copies
    special: re.Pattern[str]  # finds special tokens in a text

    def encode_start(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a text that begins here, as transformers gives them, without BOS."""
        return self.start.encode(self._named(pieces)).ids

    def encode_prompt(self, pieces: Iterable[Piece]) -> list[int]:
        """encode_start with sentencepiece's dummy prefix before every text, one that begins with a blank too."""
        text = self._named(pieces)
        blank = " " if self.loses_prefix and text.startswith(_PREFIX_LOST_BEFORE) else ""
        return self.start.encode(blank + text).ids if text else []

    def _named(self, pieces: Iterable[Piece]) -> str:
        """The text of pieces, in which special tokens of a template's own text have their names in the copies."""
        return "".join(
            self.special.sub(lambda match: self.names[match[0]], piece.text) if piece.is_own else piece.text
            for piece in pieces
        )


_codecs: WeakKeyDictionary[PreTrainedTokenizerFast, Codec] = WeakKeyDictionary()


def codec_of(tokenizer: PreTrainedTokenizerFast) -> Codec:
    """The tokenizer's codec, made once."""
    if tokenizer not in _codecs:
        _codecs[tokenizer] = _make(tokenizer)
    return _codecs[tokenizer]


def _make(tokenizer: PreTrainedTokenizerFast) -> Codec:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec.update(truncation=None, padding=None, post_processor=None)
    ids = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
    salt = secrets.token_hex(16)  # no text can hold it
    names = {content: f"{salt}{number:06x}" for number, content in enumerate(ids)}
    _rename(spec, names)
    start = Tokenizer.from_str(json.dumps(spec))
    if any(start.token_to_id(names[content]) != id for content, id in ids.items()):
        raise ValueError("its special tokens have other ids when they are read again")
    has_prefix = False
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        spec[part], changed = _without_prefix(spec[part])
        has_prefix |= changed and part != "decoder"
    middle = Tokenizer.from_str(json.dumps(spec))
    starts_with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return Codec(
        start if has_prefix else middle,
        middle,
        (tokenizer.bos_token_id,) if starts_with_bos else (),
        has_prefix and start.encode(" a").ids == start.encode("a").ids,
        names,
        pattern_of(names),
    )


def pattern_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these texts, the longest where several begin at one place; without any, nothing."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _rename(spec: dict[str, Any], names: dict[str, str]) -> None:
    """Give special tokens other names, in the added tokens and in the model's vocabulary, where they keep their ids.

    A merge that would make one out of its characters is left out.
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
        model["merges"] = [[a, b] for a, b in pairs if not names.keys() & {a, b, a + b}]


def _without_prefix(part: dict[str, Any] | None) -> tuple[dict[str, Any] | None, bool]:
    """A normalizer, pre-tokenizer or decoder that neither adds a blank before a text nor takes one from it.

    The parts and their spellings are those of the tokenizers library's file format. Returns whether anything changed.
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
