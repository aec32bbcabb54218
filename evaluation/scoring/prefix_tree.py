"""The tree of shared prefixes: token sequences laid over each other, so that what they share is computed once.

A query asks for the log-probabilities of a continuation after a context. Its sequence is context + continuation without
the last token, which nothing has to follow. The sequences of all queries form a compact trie: a node holds the tokens
between two places where sequences part, and a token position of the trie is computed exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# A query's ids: (context, continuation), both with at least one token.
Query = tuple[Sequence[int], Sequence[int]]


@dataclass(eq=False, slots=True)
class Node:
    """A run of tokens without a branch inside it; `start` is the position of its first token, counted from the root.

    targets     position -> {next token: places in Tree's scores where the log-probability of that token goes}
    below       tokens kept on the longest path below it (a leaf's keys are never read again and not kept)
    keys        its keys and values while its subtree is being scored, else None; who computes it decides their layout
    unfinished  children whose subtrees are not done
    """

    start: int
    tokens: np.ndarray
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    targets: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    below: int = 0
    keys: object | None = None
    unfinished: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    @property
    def kept(self) -> int:
        """Tokens whose keys and values stay in memory while its subtree is scored."""
        return len(self.tokens) if self.children else 0

    @property
    def path(self) -> list[Node]:
        """From the root's child down to this node."""
        nodes, node = [], self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(frozen=True)
class Tree:
    """roots  nodes that start at position 0
    bounds  int64 [queries + 1]: the scores of query q are places bounds[q] to bounds[q+1]"""

    roots: list[Node]
    bounds: np.ndarray

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before their children, siblings in order."""
        stack = self.roots[::-1]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)

    @property
    def num_tokens(self) -> int:
        """Token positions to compute: the distinct prefixes of all sequences."""
        return sum(len(node.tokens) for node in self.nodes())

    @property
    def longest(self) -> int:
        return max((node.stop for node in self.nodes()), default=0)


def build_tree(queries: Sequence[Query]) -> Tree:
    """The tree of the queries' sequences. It depends on the set of sequences alone, not on their order."""
    arrays = _sequences(queries)
    # Big-endian bytes of non-negative integers order as the numbers do.
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
            path[-1] = _cut(path[-1], shared, roots)
        if len(arrays[i]) > shared:
            parent = path[-1] if path else None
            node = Node(shared, arrays[i][shared:], parent)
            (parent.children if parent else roots).append(node)
            path.append(node)
        leaf_of[i], before = path[-1], arrays[i]
    bounds = np.cumsum([0, *(len(continuation) for _, continuation in queries)])
    for i, (context, continuation) in enumerate(queries):
        _place_targets(leaf_of[i], len(context), continuation, int(bounds[i]))
    tree = Tree(roots, bounds)
    for node in reversed(list(tree.nodes())):
        node.below = max((child.kept + child.below for child in node.children), default=0)
        node.unfinished = len(node.children)
    return tree


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens two sequences share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def _sequences(queries: Sequence[Query]) -> list[np.ndarray]:
    contexts: dict[int, np.ndarray] = {}  # the choices of a document share one context object
    arrays = []
    for context, continuation in queries:
        assert len(context) and len(continuation), "a context or a continuation without tokens has no probability"
        head = contexts.get(id(context))
        if head is None:
            head = contexts[id(context)] = np.asarray(context, dtype=np.int64)
        arrays.append(np.concatenate([head, np.asarray(continuation[:-1], dtype=np.int64)]))
    return arrays


def _cut(node: Node, position: int, roots: list[Node]) -> Node:
    """Put a new node over the part before the position; the node itself keeps the rest, where its sequences end."""
    upper = Node(node.start, node.tokens[: position - node.start], node.parent, [node])
    siblings = node.parent.children if node.parent else roots
    siblings[-1] = upper  # sequences come in order, so that it is the last child that is cut
    node.tokens, node.start, node.parent = node.tokens[position - node.start :], position, upper
    return upper


def _place_targets(leaf: Node, first: int, continuation: Sequence[int], place: int) -> None:
    """Column t is about token t+1: the first token of the continuation is the target of the context's last position."""
    node = leaf
    for j in range(len(continuation) - 1, -1, -1):
        position = first + j - 1
        while position < node.start:
            assert node.parent is not None
            node = node.parent
        node.targets.setdefault(position, {}).setdefault(int(continuation[j]), []).append(place + j)
