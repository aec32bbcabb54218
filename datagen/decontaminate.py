"""Decontamination: find records that share a 13-gram (13 words in a row) with a benchmark.

The rule is GPT-3's 13-gram overlap (Brown et al. 2020, appendix C), on Unicode words, so it works for all scripts. A
benchmark text with fewer than 13 words cannot overlap; the report counts such texts.
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
# A 13-gram's hash is a polynomial in the 64-bit hashes of its words. Equal hashes are verified word by word.
_POWERS = tuple(pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(NGRAM_WORDS))


class Overlap(NamedTuple):
    """A 13-gram, `words`, in both a record's field and a benchmark text."""

    field: str
    words: str
    path: str
    where: str  # location in the file: "LINE field"


class Benchmarks:
    """An index of the 13-grams of benchmark files: JSON records of any schema, with strings at any depth.

    texts, short_texts   the number of strings, and of strings with fewer than 13 words
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Read the files. UserError with file and line for a file that cannot be read."""
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
        """Return the first 13-gram that the record shares with a benchmark, or None."""
        if not len(self):
            return None
        for field, text in _strings(record):
            words = unicode_words(text)
            if len(words) < NGRAM_WORDS:
                continue
            hashes = self._hashes(words)
            positions = np.searchsorted(self._sorted, hashes)
            found = np.flatnonzero(self._sorted[np.minimum(positions, len(self._sorted) - 1)] == hashes)
            for at in found:
                ngram = words[at : at + NGRAM_WORDS]
                position = int(positions[at])
                while position < len(self) and self._sorted[position] == hashes[at]:
                    owner, offset = int(self._owner[position]), int(self._offset[position])
                    if self._words[owner][offset : offset + NGRAM_WORDS] == ngram:
                        return Overlap(field, " ".join(ngram), *self._where[owner])
                    position += 1
        return None

    def __len__(self) -> int:
        return len(self._sorted)

    def _hashes(self, words: Sequence[str]) -> np.ndarray:
        """Return the hashes of all 13-grams, uint64 [len(words) - 12]."""
        ids = np.fromiter((self._hash(word) for word in words), dtype=np.uint64, count=len(words))
        last = len(words) - NGRAM_WORDS + 1
        return sum(ids[at : at + last] * np.uint64(power) for at, power in enumerate(_POWERS))

    def _hash(self, word: str) -> int:
        if word not in self._hash_of_word:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._hash_of_word[word] = int.from_bytes(digest, "little")
        return self._hash_of_word[word]


def report(overlaps: Sequence[Overlap], benchmarks: Benchmarks) -> list[str]:
    """Return console lines: the benchmark texts too short to compare, and the records dropped for each file."""
    short = f"{benchmarks.short_texts:,} have fewer than 13 words and cannot overlap"
    lines = [f"{benchmarks.texts:,} benchmark texts, of which {short}"]
    files = Counter(overlap.path for overlap in overlaps)
    return lines + [f"{count:8,}  dropped: 13 words in a row from {path}" for path, count in sorted(files.items())]


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, string) for all strings in a record: "question", "choices[2]", "mc1_targets.choices[0]", ..."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{name}[{index}]")
