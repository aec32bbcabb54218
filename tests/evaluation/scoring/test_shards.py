"""Sharding over ranks: each document once, equal work, common prefixes on one rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.prefix_tree import build_tree
from evaluation.scoring.shards import shard
from tests.evaluation.scoring.documents import choice_of, document_of, documents_of


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 50))
def test_each_document_goes_to_one_rank(count, num_ranks, seed):
    shards = shard(documents_of(count, seed), num_ranks)
    assert len(shards) == num_ranks
    assert sorted(i for indices in shards for i in indices) == list(range(count))


def test_interleaved_subjects_go_to_separate_ranks():
    def document(index, subject):
        return document_of(index, [choice_of((*[subject] * 30, index), (1, 2))])

    documents = [document(i, 7 + i % 2) for i in range(10)]
    assert [sorted(indices) for indices in shard(documents, 2)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_work_is_balanced_and_few_prefixes_are_computed_twice():
    documents = documents_of(60)

    def num_tokens(subset):
        return build_tree([(c.context_ids, c.continuation_ids) for d in subset for c in d.choices]).num_tokens

    a, b = (num_tokens([documents[i] for i in indices]) for indices in shard(documents, 2))
    assert abs(a - b) / num_tokens(documents) < 0.15
    assert a + b - num_tokens(documents) <= 270
