"""Which texts of a list are near duplicates of earlier ones: every pair whose ROUGE-L F is above 0.7, and no other.

Exact, in three steps, each of which lets through a superset of the pairs wanted:

1. An inverted index over the rarest words of each text (prefix filtering: Chaudhuri et al. 2006, Xiao et al. 2008). Two
   texts of m and n words with F >= 0.7 share at least 7 (m + n) / 20 words, so they share one of their rarest.
2. A parity sketch: bit h(w) of 256 is the parity of the words hashed there. Where two sketches differ, so do the texts,
   so that the differing bits bound the shared words from above.
3. The longest common subsequence itself, and the score in rouge_score's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from datagen.text.lcs import MAX_PATTERN, lcs_length, lcs_lengths

MAX_SCORE = 0.7  # a text is a duplicate above it, by float comparison as in Alpaca's own code
# 0.7 as a ratio, for bounds in whole numbers. Rounding decides only where a score is exactly 7/10: bounds admit those.
_NUMERATOR, _DENOMINATOR = 7, 10
_SKETCH_WORDS = 4
_PAIRS_A_BLOCK = 1 << 20
_QUERIES_A_BLOCK = 512


class Matches(NamedTuple):
    """Pairs above MAX_SCORE: text[query] and text[earlier], earlier < query, and their score."""

    query: np.ndarray  # int64 [P], ascending
    earlier: np.ndarray  # int64 [P]
    score: np.ndarray  # float64 [P]


def rouge_l(lcs: np.ndarray, m: np.ndarray, n: np.ndarray) -> np.ndarray:
    """ROUGE-L's F of texts of m and n > 0 words, with rouge_score's roundings: float64, division by division."""
    precision, recall = lcs / n, lcs / m
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def near_duplicates(texts: Sequence[Sequence[str]], first_query: int = 0) -> Iterator[Matches]:
    """Every pair of tokenized texts above MAX_SCORE whose later one is at first_query or after it.

    Blocks come in order of their queries, none is split. A text without words matches nothing.
    """
    corpus = _Corpus(texts)
    postings = _Postings(corpus)
    for query, earlier in postings.blocks(first_query):
        fits = corpus.may_match(query, earlier)
        # A pair comes once for each rare word that it shares.
        pairs = np.unique(query[fits] * corpus.size + earlier[fits])
        query, earlier = pairs // corpus.size, pairs % corpus.size
        score = rouge_l(corpus.lcs(query, earlier), corpus.length[query], corpus.length[earlier])
        above = score > MAX_SCORE
        yield Matches(query[above], earlier[above], score[above])


class _Corpus:
    """Texts as numbers: words ranked from the rarest, laid end to end, with lengths and parity sketches."""

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
        self._sketch = self._sketches(len(ids))
        self._fold = np.bitwise_xor.reduce(self._sketch, axis=1)

    def words_of(self, text: int) -> np.ndarray:
        return self.words[self.start[text] : self.start[text] + self.length[text]]

    def may_match(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Where a pair may be above MAX_SCORE, by lengths and sketches: int64 indices into the pairs."""
        differing = np.bitwise_count(self._fold[query] ^ self._fold[earlier])
        near = np.flatnonzero(differing * _DENOMINATOR <= self._most_differing(query, earlier))
        query, earlier = query[near], earlier[near]
        differing = np.bitwise_count(self._sketch[query] ^ self._sketch[earlier]).sum(axis=1, dtype=np.int64)
        return near[differing * _DENOMINATOR <= self._most_differing(query, earlier)]

    def lcs(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """LCS lengths of the pairs; query ascending. int64."""
        lcs = np.zeros(len(query), dtype=np.int64)
        short = np.flatnonzero(self.length[query] <= MAX_PATTERN)
        if len(short):
            patterns, row = np.unique(query[short], return_inverse=True)
            texts = earlier[short]
            lcs[short] = lcs_lengths(
                [self.words_of(text) for text in patterns], row, self.words, self.start[texts], self.length[texts]
            )
        for pair in np.flatnonzero(self.length[query] > MAX_PATTERN):
            lcs[pair] = lcs_length(self.words_of(query[pair]).tolist(), self.words_of(earlier[pair]).tolist())
        return lcs

    def _most_differing(self, query: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """_DENOMINATOR times the most words that may be in one text of the pair and not in the other."""
        return (_DENOMINATOR - _NUMERATOR) * (self.length[query] + self.length[earlier])

    def _sketches(self, vocabulary_size: int) -> np.ndarray:
        """uint64 [texts, 4]."""
        bit = np.random.default_rng(0).integers(64 * _SKETCH_WORDS, size=vocabulary_size)
        sketch = np.zeros((self.size, _SKETCH_WORDS), dtype=np.uint64)
        full = np.flatnonzero(self.length)  # reduceat would give an empty text the word after it
        if len(full):
            for column in range(_SKETCH_WORDS):
                mask = np.where(bit // 64 == column, np.uint64(1) << (bit % 64).astype(np.uint64), np.uint64(0))
                sketch[full, column] = np.bitwise_xor.reduceat(mask[self.words], self.start[full])
        return sketch


class _Postings:
    """The inverted index: for each word, in order, the texts that hold it among their rarest.

    Entries are (word, text) pairs sorted so; a text's own entry says where the texts before it end, so nothing needs
    to be searched or inserted: the index of all texts serves each of them as if it held only the earlier ones.
    """

    def __init__(self, corpus: _Corpus) -> None:
        length = corpus.length
        text = np.repeat(np.arange(corpus.size), length)
        vocabulary_size = int(corpus.words.max(initial=-1)) + 1
        key = np.sort(text * vocabulary_size + corpus.words)  # rarest first within each text
        word = key - text * vocabulary_size
        place = np.arange(len(key)) - np.repeat(corpus.start, length)
        shortest = -(-_NUMERATOR * length // (2 * _DENOMINATOR - _NUMERATOR))  # that can match at all
        fewest_shared = -(-_NUMERATOR * (length + shortest) // (2 * _DENOMINATOR))
        is_rare = place < np.repeat(length - fewest_shared + 1, length)
        is_rare[1:] &= key[1:] != key[:-1]
        text, word = text[is_rare], word[is_rare]

        by_word = np.argsort(word, kind="stable")
        self._texts = text[by_word].astype(np.int32)
        first = np.searchsorted(word[by_word], np.arange(vocabulary_size))
        own_place = np.empty(len(text), dtype=np.int64)
        own_place[by_word] = np.arange(len(text))
        # Entries in the order of their texts: which, and where the earlier texts with that word lie in _texts.
        self._entry_text = text
        self._from = first[word]
        self._count = own_place - self._from
        self._first_entry = np.searchsorted(text, np.arange(corpus.size + 1))

    def blocks(self, first_query: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(query, earlier) pairs that share a rare word, int64, by whole queries and not too many pairs at a time."""
        pairs_before = np.concatenate([[0], np.cumsum(self._count)])[self._first_entry]
        last = len(self._first_entry) - 1
        begin = first_query
        while begin < last:
            end = int(np.searchsorted(pairs_before, pairs_before[begin] + _PAIRS_A_BLOCK, side="right")) - 1
            end = min(max(end, begin + 1), begin + _QUERIES_A_BLOCK, last)
            entries = slice(self._first_entry[begin], self._first_entry[end])
            count = self._count[entries]
            offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            earlier = self._texts[np.repeat(self._from[entries], count) + offset].astype(np.int64)
            yield np.repeat(self._entry_text[entries], count), earlier
            begin = end
