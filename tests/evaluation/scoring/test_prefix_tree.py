"""The prefix tree: one example by hand, and properties for random sequences over a small alphabet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.prefix_tree import build_tree

ids = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
queries = st.lists(st.tuples(ids, ids), min_size=1, max_size=12)


def sequence(query):
    return (*query[0], *query[1])[:-1]


def as_tuples(node):
    """A node's subtree as nested tuples: (tokens, children)."""
    return tuple(node.tokens.tolist()), tuple(as_tuples(child) for child in node.children)


def test_tree_of_three_queries():
    # The sequences are 1 2 3, 1 2 3 5 and 1 7, without the last tokens 4, 6 and 8. The first is a prefix of the second.
    tree = build_tree([((1, 2, 3), (4,)), ((1, 2, 3), (5, 6)), ((1,), (7, 8))])
    assert [as_tuples(root) for root in tree.roots] == [((1,), (((2, 3), (((5,), ()),)), ((7,), ())))]
    assert (tree.num_tokens, tree.longest) == (5, 4)
    root, (middle, last), leaf = tree.roots[0], tree.roots[0].children, tree.roots[0].children[0].children[0]
    assert root.targets == {0: {7: [3]}}
    assert middle.targets == {2: {4: [0], 5: [1]}}
    assert leaf.targets == {3: {6: [2]}}
    assert last.targets == {1: {8: [4]}}
    assert tree.bounds.tolist() == [0, 1, 3, 5]
    # The root keeps 1 token, the middle 2, a leaf none. Below the root, the middle keeps the most.
    counts = [(n.num_kept, n.max_kept_below, n.unfinished_children) for n in (root, middle, leaf)]
    assert counts == [(1, 2, 2), (2, 0, 1), (0, 0, 0)]


@given(queries)
def test_tree_has_one_token_per_distinct_prefix(queries):
    prefixes = {s[:n] for s in map(sequence, queries) for n in range(1, len(s) + 1)}
    tree = build_tree(queries)
    assert tree.num_tokens == len(prefixes)
    assert {tuple(t for n in node.path for t in n.tokens.tolist()) for node in tree.nodes()} <= prefixes
    whole = set(map(sequence, queries))
    for node in tree.nodes():
        assert node.start == (node.parent.stop if node.parent else 0)
        first = [child.tokens[0] for child in node.children]
        assert len(set(first)) == len(first)
        # A node ends only where sequences branch or one of them ends.
        assert len(first) != 1 or tuple(t for n in node.path for t in n.tokens.tolist()) in whole


@given(queries)
def test_each_continuation_token_is_a_target_once_after_its_prefix(queries):
    tree, found = build_tree(queries), {}
    for node in tree.nodes():
        path_tokens = [t for n in node.path for t in n.tokens.tolist()]
        for position, tokens in node.targets.items():
            assert node.start <= position < node.stop
            for token, indices in tokens.items():
                for index in indices:
                    assert index not in found
                    found[index] = (tuple(path_tokens[: position + 1]), token)
    expected = {
        int(tree.bounds[q]) + j: ((*context, *continuation)[: len(context) + j], continuation[j])
        for q, (context, continuation) in enumerate(queries)
        for j in range(len(continuation))
    }
    assert found == expected


@given(queries, st.randoms(use_true_random=False))
def test_tree_does_not_depend_on_the_order_of_queries(queries, random):
    shuffled = random.sample(queries, len(queries))
    assert [as_tuples(r) for r in build_tree(queries).roots] == [as_tuples(r) for r in build_tree(shuffled).roots]


@given(queries)
def test_max_kept_below_is_the_largest_sum_on_a_path(queries):
    def largest_sum(node):
        return max((child.num_kept + largest_sum(child) for child in node.children), default=0)

    assert all(node.max_kept_below == largest_sum(node) for node in build_tree(queries).nodes())
