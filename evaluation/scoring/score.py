"""Score the choices of documents: compute the tree of shared prefixes depth first, in parallel threads."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engine.base.errors import UserError
from engine.device import use
from evaluation.scoring.documents import Document
from evaluation.scoring.prefix_tree import Node, Tree, build_tree
from evaluation.scoring.tree_forward import GPU_ROWS, Chunk, TreeForward


@dataclass
class Work:
    """Counts of a scoring run."""

    tree_tokens: int = 0  # distinct prefixes of all sequences
    positions_computed: int = 0  # rows of all forwards without filler rows
    forwards: int = 0
    peak_kept_tokens: int = 0  # largest number of tokens with keys and values in memory at once


@dataclass(frozen=True)
class Scorer:
    """Scores documents with a model of the engine.

    batch_tokens  most tokens per forward of a thread (on a GPU at most GPU_ROWS)
    cache_tokens  most tokens with keys and values in memory, over all threads
    num_threads   number of forwards in parallel on a CPU, one core each: evaluation/scoring/tree_forward.py says why
    work          counts, added up over all calls of `score`
    """

    model: Any
    batch_tokens: int = 512
    cache_tokens: int = 16_384
    num_threads: int = 1
    work: Work = field(default_factory=Work)

    def score(self, documents: Sequence[Document]) -> Iterator[tuple[int, list[float]]]:
        """Yield (index in `documents`, log-likelihood of each choice in nats) in the order in which documents finish.

        A log-likelihood is the float64 sum of float32 log-probabilities. UserError as in `check`, and for a score that
        is not finite.
        """
        self.check(documents)
        queries = [(choice.context_ids, choice.continuation_ids) for d in documents for choice in d.choices]
        tree = build_tree(queries)
        self.work.tree_tokens += tree.num_tokens
        first_query = np.cumsum([0, *(len(document.choices) for document in documents)])
        document_of = np.repeat(np.arange(len(documents)), np.diff(tree.bounds[first_query]))
        missing = np.diff(tree.bounds[first_query])  # number of log-probabilities that each document still lacks
        logprob = np.zeros(int(tree.bounds[-1]), dtype=np.float32)
        for indices_of_targets, values in _Run(self, tree).results():
            for indices, value in zip(indices_of_targets, values):
                for index in indices:
                    logprob[index] = value
                    document = int(document_of[index])
                    missing[document] -= 1
                    if not missing[document]:
                        bounds = tree.bounds[first_query[document] : first_query[document + 1] + 1]
                        lls = [float(logprob[a:b].sum(dtype=np.float64)) for a, b in zip(bounds, bounds[1:])]
                        _check_finite(documents[document], lls)
                        yield document, lls

    def check(self, documents: Sequence[Document]) -> None:
        """UserError if a prompt with its choice is longer than the model or --cache-tokens allows."""
        lengths = (len(c.context_ids) + len(c.continuation_ids) - 1 for d in documents for c in d.choices)
        longest, limit = max(lengths, default=0), self.model.max_length
        if limit is not None and longest > limit:
            raise UserError(
                f"a prompt with its choice has {longest} tokens, the model takes at most {limit}: "
                f"give --max-length {limit} or less"
            )
        if longest > self.cache_tokens:
            raise UserError(
                f"--cache-tokens is {self.cache_tokens}, a prompt with its choice has {longest}: raise it to {longest}"
            )


def _check_finite(document: Document, lls: list[float]) -> None:
    if not all(map(math.isfinite, lls)):
        raise UserError(
            f"the model scores the choices of {document.task} {document.id} as {lls}: its weights are damaged or too "
            "large for --dtype; try --dtype float32, or another model"
        )


class _Run:
    """One pass over a tree. Threads take nodes from a stack of sibling lists, with the deepest list on top."""

    def __init__(self, scorer: Scorer, tree: Tree):
        self.scorer, self.tree, self.work = scorer, tree, scorer.work
        on_gpu = scorer.model.head_weight.device.type == "cuda"
        self.num_threads = 1 if on_gpu else scorer.num_threads
        self.batch_tokens = min(scorer.batch_tokens, GPU_ROWS) if on_gpu else scorer.batch_tokens
        self.stack: list[list[Node]] = [tree.roots[::-1]] if tree.roots else []  # the next node is the last of a list
        self.changed = threading.Condition()
        self.open_nodes = self.kept_tokens = 0  # open: taken from the stack, not yet computed to the end
        self.stopped = False
        self.outcomes: queue.SimpleQueue = queue.SimpleQueue()

    def results(self) -> Iterator[tuple[list[list[int]], list[float]]]:
        """Yield (score indices of each target, log-probabilities) of every forward. Raise an exception of a thread."""
        threads_before = torch.get_num_threads()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.num_threads)]
        for thread in threads:
            thread.start()
        finished = 0
        try:
            while finished < len(threads):
                outcome = self.outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    finished += 1
                else:
                    yield outcome
        finally:
            with self.changed:
                self.stopped = True
                self.changed.notify_all()
            for thread in threads:
                thread.join()
            torch.set_num_threads(threads_before)

    def _work(self) -> None:
        """Compute chunks until none is left. Runs in each thread."""
        device = self.scorer.model.head_weight.device
        if device.type == "cpu":
            torch.set_num_threads(1)
        try:
            use(device)
            tree_forward = TreeForward(self.scorer.model, self.tree.longest)
            rest: Chunk | None = None
            while True:
                chunks, rest = self._take(rest)
                if not chunks:
                    break
                indices, logprob = tree_forward.forward(chunks)
                if indices:
                    self.outcomes.put((indices, logprob.tolist()))
                self._complete(chunks)
            self.outcomes.put(None)
        except BaseException as error:  # noqa: BLE001  `results` raises it again
            self.outcomes.put(error)

    def _take(self, rest: Chunk | None) -> tuple[list[Chunk], Chunk | None]:
        """Return the chunks of the next forward, and the rest of the last node if it was split.

        The chunks are the rest from the last call, then nodes from the stack until the forward is full. The ancestors
        of a node on the stack are always computed. Wait while the stack is empty and other threads may still add nodes.
        Return no chunks when all is done.
        """
        with self.changed:
            while rest is None and not self.stack and self.open_nodes and not self.stopped:
                self.changed.wait()
            chunks: list[Chunk] = []
            free_rows, kept_below = self.batch_tokens, 0
            while free_rows and not self.stopped:
                chunk = rest or self._next_node(kept_below if chunks else None)
                if chunk is None:
                    break
                kept_below = max(kept_below, chunk.node.max_kept_below)
                stop = min(chunk.stop, chunk.start + free_rows)
                chunks.append(Chunk(chunk.node, chunk.start, stop))
                free_rows -= stop - chunk.start
                rest = Chunk(chunk.node, stop, chunk.stop) if stop < chunk.stop else None
            return chunks, rest

    def _next_node(self, kept_below: int | None) -> Chunk | None:
        """Take the next node from the stack if its keys and values fit in the cache, else return None.

        kept_below  largest max_kept_below of the nodes in this forward, reserved for their subtrees. None for the first
                    node of a forward: take it in any case, because its space was reserved with its ancestors.
        """
        if not self.stack:
            return None
        node = self.stack[-1][-1]
        if kept_below is not None:
            needed = self.kept_tokens + node.num_kept + max(kept_below, node.max_kept_below)
            if needed > self.scorer.cache_tokens:
                return None
        self.stack[-1].pop()
        if not self.stack[-1]:
            self.stack.pop()
        self.open_nodes += 1
        self.kept_tokens += node.num_kept
        self.work.peak_kept_tokens = max(self.work.peak_kept_tokens, self.kept_tokens)
        return Chunk(node, node.start, node.stop)

    def _complete(self, chunks: list[Chunk]) -> None:
        """Count the work, push the children of complete nodes on the stack, and free caches that are not needed."""
        nodes = [chunk.node for chunk in chunks if chunk.stop == chunk.node.stop]
        with self.changed:
            self.work.forwards += 1
            self.work.positions_computed += sum(chunk.stop - chunk.start for chunk in chunks)
            children = [child for node in nodes for child in node.children]
            if children:
                self.stack.append(children[::-1])
            for leaf in (node for node in nodes if not node.children):
                self._finish(leaf)
            self.open_nodes -= len(nodes)
            self.changed.notify_all()

    def _finish(self, node: Node) -> None:
        """Free the cache of a finished leaf, and of its ancestors up to the first with an unfinished child."""
        node.kv = None  # a leaf that was split into chunks has a cache
        while node.parent is not None:
            node = node.parent
            node.unfinished_children -= 1
            if node.unfinished_children:
                return
            node.kv = None
            self.kept_tokens -= node.num_kept
