"""The tree of prefixes: hand-made cases, and properties over all sets of sequences of a small alphabet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.prefix_tree import build_tree

ids = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
queries = st.lists(st.tuples(ids, ids), min_size=1, max_size=12)


def sequence(query):
    return (*query[0], *query[1])[:-1]


def written(node):
    """A node and what is below it, as nested tuples."""
    return tuple(node.tokens.tolist()), tuple(written(child) for child in node.children)


def test_a_tree_by_hand():
    #  1 2 3 -> 4      sequences 1 2 3 and 1 2 3 5 (of 1 2 3 -> 5 6) and 1 7 (of 1 -> 7 8): the first ends in the second
    tree = build_tree([((1, 2, 3), (4,)), ((1, 2, 3), (5, 6)), ((1,), (7, 8))])
    assert [written(root) for root in tree.roots] == [((1,), (((2, 3), (((5,), ()),)), ((7,), ())))]
    assert (tree.num_tokens, tree.longest) == (5, 4)
    root, (middle, last), leaf = tree.roots[0], tree.roots[0].children, tree.roots[0].children[0].children[0]
    assert root.targets == {0: {7: [3]}}
    assert middle.targets == {2: {4: [0], 5: [1]}}
    assert leaf.targets == {3: {6: [2]}}
    assert last.targets == {1: {8: [4]}}
    assert tree.bounds.tolist() == [0, 1, 3, 5]
    # The root keeps 1 token, the middle 2, leaves none: the longest kept path below the root is the middle's.
    assert [(n.kept, n.below, n.unfinished) for n in (root, middle, leaf)] == [(1, 2, 2), (2, 0, 1), (0, 0, 0)]


@given(queries)
def test_each_distinct_prefix_is_one_token_of_the_tree(queries):
    prefixes = {s[:n] for s in map(sequence, queries) for n in range(1, len(s) + 1)}
    tree = build_tree(queries)
    assert tree.num_tokens == len(prefixes)
    assert {tuple(t for n in node.path for t in n.tokens.tolist()) for node in tree.nodes()} <= prefixes
    whole = set(map(sequence, queries))
    for node in tree.nodes():
        assert node.start == (node.parent.stop if node.parent else 0)
        first = [child.tokens[0] for child in node.children]
        assert len(set(first)) == len(first)
        # A node goes on until sequences part or one of them ends.
        assert len(first) != 1 or tuple(t for n in node.path for t in n.tokens.tolist()) in whole


@given(queries)
def test_every_token_of_every_continuation_is_asked_for_once_behind_its_own_prefix(queries):
    tree, found = build_tree(queries), {}
    for node in tree.nodes():
        before = [t for n in node.path for t in n.tokens.tolist()]
        for position, tokens in node.targets.items():
            assert node.start <= position < node.stop
            for token, places in tokens.items():
                for place in places:
                    assert place not in found
                    found[place] = (tuple(before[: position + 1]), token)
    expected = {
        int(tree.bounds[q]) + j: ((*context, *continuation)[: len(context) + j], continuation[j])
        for q, (context, continuation) in enumerate(queries)
        for j in range(len(continuation))
    }
    assert found == expected


@given(queries, st.randoms(use_true_random=False))
def test_the_order_of_queries_changes_nothing(queries, random):
    shuffled = random.sample(queries, len(queries))
    assert [written(r) for r in build_tree(queries).roots] == [written(r) for r in build_tree(shuffled).roots]


@given(queries)
def test_below_is_the_longest_kept_path(queries):
    def longest(node):
        return max((child.kept + longest(child) for child in node.children), default=0)

    assert all(node.below == longest(node) for node in build_tree(queries).nodes())
