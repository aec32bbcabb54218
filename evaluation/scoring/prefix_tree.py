"""Build the tree of shared prefixes of all token sequences, so that a shared prefix is computed only once.

A query asks for the log-probabilities of a continuation after a context. Its sequence is context + continuation without
the last token, which predicts nothing. The sequences of all queries form a compact trie: a node holds the tokens
between two positions where sequences branch. Each token position of the trie is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# (context ids, continuation ids), each with at least one token.
Query = tuple[Sequence[int], Sequence[int]]


@dataclass(eq=False, slots=True)
class Node:
    """A run of tokens without a branch inside.

    start                position of its first token, counted from the root
    targets              position -> {next token: indices of the scores that take that token's log-probability}
    max_kept_below       largest sum of num_kept on any path below this node
    kv                   its keys and values while its subtree is scored, else None; see KeysValues
    unfinished_children  number of children with an unfinished subtree
    """

    start: int
    tokens: np.ndarray
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    targets: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    max_kept_below: int = 0
    kv: object | None = None
    unfinished_children: int = 0

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)

    @property
    def num_kept(self) -> int:
        """Number of its tokens with keys and values in memory while its subtree is scored. A leaf keeps none."""
        return len(self.tokens) if self.children else 0

    @property
    def path(self) -> list[Node]:
        """The nodes from position 0 down to this one, inclusive."""
        nodes, node = [], self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(frozen=True)
class Tree:
    """The tree of all queries.

    roots   nodes that start at position 0
    bounds  int64 [queries + 1]: the scores of query q have the indices bounds[q] to bounds[q+1]-1
    """

    roots: list[Node]
    bounds: np.ndarray

    def nodes(self) -> Iterator[Node]:
        """Yield every node, parents before their children and siblings in order."""
        stack = self.roots[::-1]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)

    @property
    def num_tokens(self) -> int:
        """Number of token positions to compute, which is the number of distinct prefixes."""
        return sum(len(node.tokens) for node in self.nodes())

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max((node.stop for node in self.nodes()), default=0)


def build_tree(queries: Sequence[Query]) -> Tree:
    """Return the tree of the queries' sequences. It depends on the set of sequences, not on their order."""
    arrays = _sequences(queries)
    # The big-endian bytes of non-negative integers sort as the integers do.
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">i4").tobytes())
    roots: list[Node] = []
    leaf_of: dict[int, Node] = {}
    path: list[Node] = []
    before = np.empty(0, dtype=np.int64)
    for i in order:
        shared = common_prefix(before, arrays[i])
        while path and path[-1].start >= shared:
            path.pop()
        if path and path[-1].stop > shared:
            path[-1] = _split(path[-1], shared, roots)
        if len(arrays[i]) > shared:
            parent = path[-1] if path else None
            node = Node(shared, arrays[i][shared:], parent)
            (parent.children if parent else roots).append(node)
            path.append(node)
        leaf_of[i], before = path[-1], arrays[i]
    bounds = np.cumsum([0, *(len(continuation) for _, continuation in queries)])
    for i, (context, continuation) in enumerate(queries):
        _add_targets(leaf_of[i], len(context), continuation, int(bounds[i]))
    tree = Tree(roots, bounds)
    for node in reversed(list(tree.nodes())):
        node.max_kept_below = max((child.num_kept + child.max_kept_below for child in node.children), default=0)
        node.unfinished_children = len(node.children)
    return tree


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix of two sequences."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def _sequences(queries: Sequence[Query]) -> list[np.ndarray]:
    contexts: dict[int, np.ndarray] = {}  # by object id: the choices of a document share one context object
    arrays = []
    for context, continuation in queries:
        assert len(context) and len(continuation), "a context and a continuation need at least one token each"
        head = contexts.get(id(context))
        if head is None:
            head = contexts[id(context)] = np.asarray(context, dtype=np.int64)
        arrays.append(np.concatenate([head, np.asarray(continuation[:-1], dtype=np.int64)]))
    return arrays


def _split(node: Node, position: int, roots: list[Node]) -> Node:
    """Split a node at the position and return the new upper node. `node` stays the lower one: sequences end there."""
    upper = Node(node.start, node.tokens[: position - node.start], node.parent, [node])
    siblings = node.parent.children if node.parent else roots
    siblings[-1] = upper  # sequences are sorted, so the node to split is always the last child
    node.tokens, node.start, node.parent = node.tokens[position - node.start :], position, upper
    return upper


def _add_targets(leaf: Node, context_length: int, continuation: Sequence[int], first_index: int) -> None:
    """Add each token of the continuation as a target of the position before it, up the path from the leaf."""
    node = leaf
    for j in range(len(continuation) - 1, -1, -1):
        position = context_length + j - 1
        while position < node.start:
            assert node.parent is not None
            node = node.parent
        node.targets.setdefault(position, {}).setdefault(int(continuation[j]), []).append(first_index + j)
