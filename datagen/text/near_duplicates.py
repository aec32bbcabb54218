"""Find near duplicates of earlier texts in a list: exactly the pairs with ROUGE-L F above 0.7.

Exact, in three steps. The first two let through a superset of the wanted pairs:

1. An inverted index over the rarest words of each text (prefix filtering: Chaudhuri et al. 2006, Xiao et al. 2008). Two
   texts of m and n words with F >= 0.7 share at least 7 (m + n) / 20 words, so they share one of their rarest words.
2. A parity sketch of 256 bits: bit b is the parity of the number of words that hash to b. Each differing bit of two
   sketches means a word occurrence that only one text has, so the differing bits bound the shared words from above.
3. The longest common subsequence, and the score with rouge_score's own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

MAX_SCORE = 0.7  # a higher score means duplicate; float comparison as in Alpaca's code
# 0.7 as a ratio, for integer bounds. Float rounding matters only at exactly 7/10; the bounds let those pairs through.
_NUMERATOR, _DENOMINATOR = 7, 10
_SURROGATES, _SURROGATE_COUNT = 0xD800, 0x800  # code points that are not characters
_CHARACTERS = 0x110000 - _SURROGATE_COUNT
_SKETCH_WORDS = 4  # uint64 per sketch
_PAIRS_PER_BLOCK = 1 << 20
_QUERIES_PER_BLOCK = 512


class Matches(NamedTuple):
    """P pairs above MAX_SCORE, as indices into the texts with earlier < query, and their scores."""

    query: np.ndarray  # int64 [P], ascending
    earlier: np.ndarray  # int64 [P]
    score: np.ndarray  # float64 [P]


def rouge_l(lcs: np.ndarray, m: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return ROUGE-L F, float64, of texts of m and n > 0 words, rounded exactly as rouge_score rounds it."""
    precision, recall = lcs / n, lcs / m
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def near_duplicates(texts: Sequence[Sequence[str]], first_query: int = 0) -> Iterator[Matches]:
    """Yield all pairs of tokenized texts above MAX_SCORE with query >= first_query, in blocks of ascending queries.

    All pairs of a query are in one block. A text without words matches nothing.
    """
    corpus = _Corpus(texts)
    postings = _Postings(corpus)
    for query, earlier in postings.blocks(first_query):
        fits = corpus.may_match(query, earlier)
        # A pair occurs once per rare word that it shares.
        pairs = np.unique(query[fits] * corpus.size + earlier[fits])
        query, earlier = pairs // corpus.size, pairs % corpus.size
        score = rouge_l(corpus.lcs(query, earlier), corpus.length[query], corpus.length[earlier])
        above = score > MAX_SCORE
        yield Matches(query[above], earlier[above], score[above])


class _Corpus:
    """Concatenated texts as word ranks (0 is the rarest word), with lengths and parity sketches."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        ids: dict[str, int] = {}
        self.size = len(texts)
        self.length = np.fromiter((len(words) for words in texts), dtype=np.int64, count=self.size)
        self.start = np.cumsum(self.length) - self.length
        word = np.fromiter(
            (ids.setdefault(word, len(ids)) for words in texts for word in words),
            dtype=np.int32,
            count=int(self.length.sum()),
        )
        count = np.bincount(word, minlength=len(ids))
        rank = np.empty(len(ids), dtype=np.int32)
        rank[np.argsort(count, kind="stable")] = np.arange(len(ids), dtype=np.int32)
        self.words = rank[word]
        # One character per word, as RapidFuzz compares strings fastest.
        self._characters = _strings(self.words, self.start, self.length, len(ids))
        self._sketch = self._sketches(len(ids))
        self._fold = np.bitwise_xor.reduce(self._sketch, axis=1)

    def words_of(self, text: int) -> np.ndarray:
        return self.words[self.start[text] : self.start[text] + self.length[text]]

    def may_match(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Return the int64 indices of the pairs that lengths and sketches do not rule out."""
        differing = np.bitwise_count(self._fold[query] ^ self._fold[earlier])
        near = np.flatnonzero(differing * _DENOMINATOR <= self._most_differing(query, earlier))
        query, earlier = query[near], earlier[near]
        differing = np.bitwise_count(self._sketch[query] ^ self._sketch[earlier]).sum(axis=1, dtype=np.int64)
        return near[differing * _DENOMINATOR <= self._most_differing(query, earlier)]

    def lcs(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Return the LCS lengths of the pairs, int64."""
        sides = ([self._characters[text] for text in side.tolist()] for side in (query, earlier))
        return cpdist(*sides, scorer=LCSseq.similarity, dtype=np.int64)

    def _most_differing(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Return _DENOMINATOR times the most words that only one text of a matching pair may contain."""
        return (_DENOMINATOR - _NUMERATOR) * (self.length[query] + self.length[earlier])

    def _sketches(self, vocabulary_size: int) -> np.ndarray:
        """Return the parity sketches, uint64 [texts, 4]."""
        bit = np.random.default_rng(0).integers(64 * _SKETCH_WORDS, size=vocabulary_size)
        sketch = np.zeros((self.size, _SKETCH_WORDS), dtype=np.uint64)
        nonempty = np.flatnonzero(self.length)  # reduceat would give an empty text the word after it
        if len(nonempty):
            for column in range(_SKETCH_WORDS):
                mask = np.where(bit // 64 == column, np.uint64(1) << (bit % 64).astype(np.uint64), np.uint64(0))
                sketch[nonempty, column] = np.bitwise_xor.reduceat(mask[self.words], self.start[nonempty])
        return sketch


def _strings(words: np.ndarray, start: np.ndarray, length: np.ndarray, vocabulary_size: int) -> list[Any]:
    """Return each text as a string of one character per word, or as a tuple if there are more words than characters."""
    ends = (start + length).tolist()
    if vocabulary_size >= _CHARACTERS:
        return [tuple(words[begin:end].tolist()) for begin, end in zip(start.tolist(), ends)]
    codes = words + (words >= _SURROGATES) * _SURROGATE_COUNT
    whole = codes.astype("<u4").tobytes().decode("utf-32-le")
    return [whole[begin:end] for begin, end in zip(start.tolist(), ends)]


class _Postings:
    """Inverted index: for each word, the texts that have it among their rarest words, in order.

    Entries are (word, text) pairs, sorted. The entry of a text marks where the earlier texts of that word end, so one
    static index serves every query as if it held only the earlier texts.
    """

    def __init__(self, corpus: _Corpus) -> None:
        length = corpus.length
        text = np.repeat(np.arange(corpus.size), length)
        vocabulary_size = int(corpus.words.max(initial=-1)) + 1
        key = np.sort(text * vocabulary_size + corpus.words)  # rarest first within each text
        word = key - text * vocabulary_size
        position = np.arange(len(key)) - np.repeat(corpus.start, length)
        shortest = -(-_NUMERATOR * length // (2 * _DENOMINATOR - _NUMERATOR))  # shortest text that can match
        fewest_shared = -(-_NUMERATOR * (length + shortest) // (2 * _DENOMINATOR))
        is_rare = position < np.repeat(length - fewest_shared + 1, length)
        is_rare[1:] &= key[1:] != key[:-1]
        text, word = text[is_rare], word[is_rare]

        by_word = np.argsort(word, kind="stable")
        self._texts = text[by_word].astype(np.int32)
        first = np.searchsorted(word[by_word], np.arange(vocabulary_size))
        own_position = np.empty(len(text), dtype=np.int64)
        own_position[by_word] = np.arange(len(text))
        # Entries ordered by text: the text, and the slice of _texts with the earlier texts that have the word.
        self._entry_text = text
        self._from = first[word]
        self._count = own_position - self._from
        self._first_entry = np.searchsorted(text, np.arange(corpus.size + 1))

    def blocks(self, first_query: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (query, earlier) pairs that share a rare word, int64, in blocks of whole queries and bounded size."""
        pairs_before = np.concatenate([[0], np.cumsum(self._count)])[self._first_entry]
        last = len(self._first_entry) - 1
        begin = first_query
        while begin < last:
            end = int(np.searchsorted(pairs_before, pairs_before[begin] + _PAIRS_PER_BLOCK, side="right")) - 1
            end = min(max(end, begin + 1), begin + _QUERIES_PER_BLOCK, last)
            entries = slice(self._first_entry[begin], self._first_entry[end])
            count = self._count[entries]
            offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            earlier = self._texts[np.repeat(self._from[entries], count) + offset].astype(np.int64)
            yield np.repeat(self._entry_text[entries], count), earlier
            begin = end
