"""Extend a BPE tokenizer with pieces of new text: new merges come after its own, so old pieces keep ids and order.

Training continues where the tokenizer's own training ended: words of the text, as the old tokenizer splits them, are
the symbols of a new byte-pair encoding (Sennrich et al. 2016). A text in which no new piece occurs keeps its ids.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.tokenizer import load_tokenizer

RAREST = 2  # occurrences of a pair, or of a missing character, that becomes a piece
_FIRST_SYMBOL = 0xF0000  # private characters of Unicode, one for each old token: the trainer knows only characters
_SYMBOLS = 0x10FFFE - _FIRST_SYMBOL
_JOINERS = "\u200c\u200d"  # inside words of several scripts
_BLANK = "\u2581"  # SentencePiece's
_SPLIT = pre_tokenizers.Split(Regex(rf"{_BLANK}?[\p{{L}}\p{{M}}{_JOINERS}]+"), "isolated")


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new pieces. Their ids are `first_id`, `first_id` + 1, ..."""

    tokenizer: PreTrainedTokenizerFast
    first_id: int
    replaced: tuple[tuple[int, ...], ...]  # for each new piece, the old tokens that it replaces


def extend(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], count: int) -> Extension:
    """Return the tokenizer with up to `count` new pieces, the most frequent first; fewer where the texts have fewer.

    Pieces are made of letters and marks, with the blank before a word: digits and punctuation keep their ids. Letters
    that a SentencePiece vocabulary lacks become pieces first, since their bytes cannot be merged. UserError for a
    tokenizer that is not BPE.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    _check(tokenizer, model)
    words: Mapping[str, int] = Counter(chain.from_iterable(_words(tokenizer.backend_tokenizer, text) for text in texts))
    vocab, first_id = model["vocab"], 1 + max(tokenizer.get_vocab().values())
    replaced: list[tuple[int, ...]] = []
    if model.get("byte_fallback"):
        for character in _missing(words, vocab)[:count]:
            replaced.append(tuple(vocab[f"<0x{byte:02X}>"] for byte in character.encode()))
            vocab[character] = first_id + len(replaced) - 1
        words = {word: times for word, times in words.items() if all(c in vocab for c in word)}
    pieces = {id: piece for piece, id in vocab.items()}
    merges = model["merges"]
    as_text = bool(merges) and isinstance(merges[0], str)
    for left, right in _trained(words, Tokenizer.from_str(json.dumps(spec)), 2 * (count - len(replaced))):
        a, b = ("".join(pieces[id] for id in ids) for ids in (left, right))
        if a + b not in vocab:
            if len(replaced) == count:
                break
            parts = (replaced[id - first_id] if id >= first_id else (id,) for id in (*left, *right))
            vocab[a + b] = first_id + len(replaced)
            replaced.append(tuple(chain.from_iterable(parts)))
        merges.append(f"{a} {b}" if as_text else [a, b])
    return Extension(_rebuilt(tokenizer, spec), first_id, tuple(replaced))


def _check(tokenizer: PreTrainedTokenizerFast, model: Mapping[str, Any]) -> None:
    if model["type"] != "BPE":
        raise UserError(f"{tokenizer.name_or_path} has a {model['type']} tokenizer: only BPE can be extended")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{tokenizer.name_or_path} marks parts of words by {model[name]!r}: it cannot be extended")


def _words(backend: Tokenizer, text: str) -> Iterator[str]:
    """Yield the words of a text as the tokenizer's BPE sees them: letters and marks, with the blank before."""
    normalised = backend.normalizer.normalize_str(text) if backend.normalizer else text
    split = backend.pre_tokenizer.pre_tokenize_str(normalised) if backend.pre_tokenizer else [(normalised, (0, 0))]
    for piece, (start, end) in split:
        if _is_word(normalised[start:end].strip()):
            yield piece  # byte-level: its letters are bytes
        else:  # SentencePiece: the BPE sees texts with their blanks
            words = _SPLIT.pre_tokenize_str(piece.replace(" ", _BLANK))
            yield from (word for word, _ in words if _is_word(word.removeprefix(_BLANK)))


def _is_word(text: str) -> bool:
    return bool(text) and all(c in _JOINERS or unicodedata.category(c)[0] in "LM" for c in text)


def _missing(words: Mapping[str, int], vocab: Mapping[str, int]) -> list[str]:
    """Return the letters that have no piece, most frequent first."""
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for character in word:
            if character not in vocab:
                counts[character] += times
    return [character for character, times in counts.most_common() if times >= RAREST]


def _trained(words: Mapping[str, int], old: Tokenizer, count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield up to `count` merges in order, each as the tokens of its left and of its right side."""
    split = {word: [token.id for token in old.model.tokenize(word)] for word in words}
    used = sorted({id for ids in split.values() for id in ids})
    if len(used) > _SYMBOLS:
        raise UserError(f"the text uses {len(used):,} tokens, the limit is {_SYMBOLS:,}: give text of one language")
    symbol = {id: chr(_FIRST_SYMBOL + number) for number, id in enumerate(used)}
    spelt = {word: "".join(symbol[id] for id in ids) for word, ids in split.items()}
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=len(used) + count, min_frequency=RAREST, show_progress=False)
    trained.train_from_iterator(
        chain.from_iterable(repeat(spelt[word], times) for word, times in words.items()), trainer
    )
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        yield tuple(used[ord(c) - _FIRST_SYMBOL] for c in left), tuple(used[ord(c) - _FIRST_SYMBOL] for c in right)


def _rebuilt(tokenizer: PreTrainedTokenizerFast, spec: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the same kind, with the same special tokens and chat template, from a tokenizer.json."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.model", "vocab.json", "merges.txt"):  # they hold the old pieces
            Path(folder, name).unlink(missing_ok=True)
        Path(folder, "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder)
