"""Shares of ranks: each document once, neighbours together, the work even."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.prefix_tree import build_tree
from evaluation.scoring.shares import shares
from tests.evaluation.scoring.scorable import choice_of, document_of, documents_of


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 50))
def test_every_document_goes_to_one_rank(count, size, seed):
    parts = shares(documents_of(count, seed), size)
    assert len(parts) == size
    assert sorted(i for part in parts for i in part) == list(range(count))


def test_two_subjects_go_to_two_ranks_whatever_their_order():
    def document(index, subject):
        return document_of(index, [choice_of((*[subject] * 30, index), (1, 2))])

    documents = [document(i, 7 + i % 2) for i in range(10)]
    assert [sorted(part) for part in shares(documents, 2)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_work_is_even_and_prefixes_are_hardly_computed_twice():
    documents = documents_of(60)

    def tokens(some):
        return build_tree([(c.context_ids, c.continuation_ids) for d in some for c in d.choices]).num_tokens

    a, b = (tokens([documents[i] for i in part]) for part in shares(documents, 2))
    assert abs(a - b) / tokens(documents) < 0.15
    assert a + b - tokens(documents) <= 270
