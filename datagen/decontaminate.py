"""Decontamination: which records share 13 words in a row with a benchmark, and where.

13-gram overlap as in GPT-3 (Brown et al. 2020, appendix C), on Unicode words, so that every script counts. A text of a
benchmark shorter than 13 words cannot overlap; how many there are is told.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datagen.text.words import unicode_words
from engine.base.records import read_records

NGRAM_WORDS = 13
# A polynomial in 64-bit hashes of the words; equal hashes are compared word by word.
_POWERS = tuple(pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(NGRAM_WORDS))


class Overlap(NamedTuple):
    """A record's field and a benchmark's text that share `words` in a row."""

    field: str
    words: str
    path: str
    where: str  # in the file: "LINE field"


class Benchmarks:
    """The 13-grams of every text in benchmark files: JSON records of any schema, their strings at any depth.

    texts, short_texts: how many strings were read, and how many of them have fewer than 13 words
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """UserError, with file and line, for a file that cannot be read."""
        self._where: list[tuple[str, str]] = []
        self._words: list[list[str]] = []
        self._hash_of_word: dict[str, int] = {}
        self.texts = self.short_texts = 0
        hashes, owners, offsets = [], [], []
        for path in paths:
            for line, record in read_records(path):
                for field, text in _strings(record):
                    self.texts += 1
                    words = unicode_words(text)
                    if len(words) < NGRAM_WORDS:
                        self.short_texts += 1
                        continue
                    hashes.append(self._hashes(words))
                    owners.append(np.full(len(hashes[-1]), len(self._words), dtype=np.int32))
                    offsets.append(np.arange(len(hashes[-1]), dtype=np.int32))
                    self._where.append((path, f"{line} {field}"))
                    self._words.append(words)
        all_hashes = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
        order = np.argsort(all_hashes, kind="stable")
        self._sorted = all_hashes[order]
        self._owner = np.concatenate(owners)[order] if owners else np.zeros(0, dtype=np.int32)
        self._offset = np.concatenate(offsets)[order] if offsets else np.zeros(0, dtype=np.int32)

    def overlap(self, record: Mapping[str, Any]) -> Overlap | None:
        """The first 13 words that a text of the record shares with a benchmark, None where it shares none."""
        if not len(self):
            return None
        for field, text in _strings(record):
            words = unicode_words(text)
            if len(words) < NGRAM_WORDS:
                continue
            hashes = self._hashes(words)
            places = np.searchsorted(self._sorted, hashes)
            found = np.flatnonzero(self._sorted[np.minimum(places, len(self._sorted) - 1)] == hashes)
            for at in found:
                ngram = words[at : at + NGRAM_WORDS]
                place = int(places[at])
                while place < len(self) and self._sorted[place] == hashes[at]:
                    owner, offset = int(self._owner[place]), int(self._offset[place])
                    if self._words[owner][offset : offset + NGRAM_WORDS] == ngram:
                        return Overlap(field, " ".join(ngram), *self._where[owner])
                    place += 1
        return None

    def __len__(self) -> int:
        return len(self._sorted)

    def _hashes(self, words: Sequence[str]) -> np.ndarray:
        """uint64 [len(words) - 12], one for each 13 words in a row."""
        ids = np.fromiter((self._hash(word) for word in words), dtype=np.uint64, count=len(words))
        last = len(words) - NGRAM_WORDS + 1
        return sum(ids[at : at + last] * np.uint64(power) for at, power in enumerate(_POWERS))

    def _hash(self, word: str) -> int:
        if word not in self._hash_of_word:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._hash_of_word[word] = int.from_bytes(digest, "little")
        return self._hash_of_word[word]


def report(overlaps: Sequence[Overlap], benchmarks: Benchmarks) -> list[str]:
    """Lines for a person: how many records were dropped for which benchmark file, and what could not be compared."""
    lines = [
        f"{benchmarks.texts:,} benchmark texts, of which {benchmarks.short_texts:,} under 13 words overlap nothing"
    ]
    files = Counter(overlap.path for overlap in overlaps)
    return lines + [f"{count:8,}  dropped for 13 words in a row of {path}" for path, count in sorted(files.items())]


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a record with the name of its place: "question", "choices[2]", "mc1_targets.choices[0]"."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{name}[{index}]")
