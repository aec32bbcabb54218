"""Scores of documents' choices: the tree of shared prefixes, computed depth first by threads side by side."""

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
from evaluation.scoring.branches import GPU_ROWS, Branches, Piece
from evaluation.scoring.documents import Document
from evaluation.scoring.prefix_tree import Node, Tree, build_tree


@dataclass
class Work:
    """What a scoring run did, for people and tests."""

    tree_tokens: int = 0  # distinct prefixes of all sequences
    positions_computed: int = 0  # rows without those that fill up a forward
    forwards: int = 0
    peak_kept_tokens: int = 0  # tokens whose keys and values were in memory at once


@dataclass(frozen=True)
class Scorer:
    """Scores with a model of the engine.

    batch_tokens  rows of one forward of one thread at most (on a GPU forwards have a fixed size)
    cache_tokens  tokens whose keys and values are kept at most for what is below them, over all threads
    num_threads   forwards side by side on a CPU; each runs on one core, see evaluation/scoring/branches.py
    """

    model: Any
    batch_tokens: int = 512
    cache_tokens: int = 16_384
    num_threads: int = 1
    work: Work = field(default_factory=Work)

    def score(self, documents: Sequence[Document]) -> Iterator[tuple[int, list[float]]]:
        """Yield (place in `documents`, log-likelihood in nats of each choice) as documents are done, in any order.

        A log-likelihood is the float64 sum of float32 log-probabilities. UserError as `check` has it, and for scores
        that are no numbers.
        """
        self.check(documents)
        queries = [(choice.context_ids, choice.continuation_ids) for d in documents for choice in d.choices]
        tree = build_tree(queries)
        self.work.tree_tokens += tree.num_tokens
        first_query = np.cumsum([0, *(len(document.choices) for document in documents)])
        document_of = np.repeat(np.arange(len(documents)), np.diff(tree.bounds[first_query]))
        left = np.diff(tree.bounds[first_query])  # log-probabilities that a document waits for
        logprob = np.zeros(int(tree.bounds[-1]), dtype=np.float32)
        for places, values in _Run(self, tree).results():
            for where, value in zip(places, values):
                for place in where:
                    logprob[place] = value
                    document = int(document_of[place])
                    left[document] -= 1
                    if not left[document]:
                        bounds = tree.bounds[first_query[document] : first_query[document + 1] + 1]
                        lls = [float(logprob[a:b].sum(dtype=np.float64)) for a, b in zip(bounds, bounds[1:])]
                        _check_finite(documents[document], lls)
                        yield document, lls

    def check(self, documents: Sequence[Document]) -> None:
        """UserError for a prompt with its choice that is longer than the model or --cache-tokens allow."""
        lengths = (len(c.context_ids) + len(c.continuation_ids) - 1 for d in documents for c in d.choices)
        longest, limit = max(lengths, default=0), self.model.max_length
        if limit is not None and longest > limit:
            raise UserError(f"a prompt with its choice has {longest} tokens, the model serves {limit}: --max-length")
        if longest > self.cache_tokens:
            raise UserError(
                f"--cache-tokens is {self.cache_tokens}, a prompt with its choice has {longest}: raise it to {longest}"
            )


def _check_finite(document: Document, lls: list[float]) -> None:
    if not all(map(math.isfinite, lls)):
        raise UserError(
            f"the model scores the choices of {document.task} {document.id} as {lls}: its weights are damaged, or too "
            "large for --dtype"
        )


class _Run:
    """One pass over a tree: a stack of sibling lists, the deepest on top, from which threads take what fits."""

    def __init__(self, scorer: Scorer, tree: Tree):
        self.scorer, self.tree, self.work = scorer, tree, scorer.work
        on_gpu = scorer.model.head_weight.device.type == "cuda"
        self.num_threads = 1 if on_gpu else scorer.num_threads
        self.batch_tokens = min(scorer.batch_tokens, GPU_ROWS) if on_gpu else scorer.batch_tokens
        self.stack: list[list[Node]] = [tree.roots[::-1]] if tree.roots else []  # each list's next node is its last
        self.changed = threading.Condition()
        self.open_nodes = self.kept_tokens = 0  # open: taken and not complete
        self.stopped = False
        self.answers: queue.SimpleQueue = queue.SimpleQueue()

    def results(self) -> Iterator[tuple[list[list[int]], list[float]]]:
        """The answers of every forward. An exception in a thread is raised here."""
        threads_before = torch.get_num_threads()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.num_threads)]
        for thread in threads:
            thread.start()
        finished = 0
        try:
            while finished < len(threads):
                answer = self.answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    finished += 1
                else:
                    yield answer
        finally:
            with self.changed:
                self.stopped = True
                self.changed.notify_all()
            for thread in threads:
                thread.join()
            torch.set_num_threads(threads_before)

    def _work(self) -> None:
        """A thread's life."""
        if self.scorer.model.head_weight.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            branches = Branches(self.scorer.model, self.tree.longest)
            rest: Piece | None = None
            while True:
                pieces, rest = self._take(rest)
                if not pieces:
                    break
                places, logprob = branches.forward(pieces)
                if places:
                    self.answers.put((places, logprob.tolist()))
                self._done(pieces)
            self.answers.put(None)
        except BaseException as error:  # noqa: BLE001  raised again by the thread that reads the answers
            self.answers.put(error)

    def _take(self, rest: Piece | None) -> tuple[list[Piece], Piece | None]:
        """What to compute next, and the rest of the last node if it was cut: the same thread goes on with that.

        First the rest of the last time, then nodes off the stack until the forward is full: all of them are ready,
        their ancestors being computed. Nothing when all is done. Waits while others may add some.
        """
        with self.changed:
            while rest is None and not self.stack and self.open_nodes and not self.stopped:
                self.changed.wait()
            pieces: list[Piece] = []
            room, below = self.batch_tokens, 0
            while room and not self.stopped:
                piece = rest or self._next_node(fits_beside=below if pieces else None)
                if piece is None:
                    break
                below = max(below, piece.node.below)
                stop = min(piece.stop, piece.start + room)
                pieces.append(Piece(piece.node, piece.start, stop))
                room -= stop - piece.start
                rest = Piece(piece.node, stop, piece.stop) if stop < piece.stop else None
            return pieces, rest

    def _next_node(self, fits_beside: int | None) -> Piece | None:
        """The next node off the stack, if its keys fit beside what is kept and what will be below the others.

        fits_beside  what the nodes of this forward have below them; None for the first one, which is always taken: what
                     it needs beside its ancestors was left free for it.
        """
        if not self.stack:
            return None
        node = self.stack[-1][-1]
        if fits_beside is not None:
            needed = self.kept_tokens + node.kept + max(fits_beside, node.below)
            if needed > self.scorer.cache_tokens:
                return None
        self.stack[-1].pop()
        if not self.stack[-1]:
            self.stack.pop()
        self.open_nodes += 1
        self.kept_tokens += node.kept
        self.work.peak_kept_tokens = max(self.work.peak_kept_tokens, self.kept_tokens)
        return Piece(node, node.start, node.stop)

    def _done(self, pieces: list[Piece]) -> None:
        """Count, put the children of what is complete on the stack, and free what no branch needs any more."""
        nodes = [piece.node for piece in pieces if piece.stop == piece.node.stop]
        with self.changed:
            self.work.forwards += 1
            self.work.positions_computed += sum(piece.stop - piece.start for piece in pieces)
            children = [child for node in nodes for child in node.children]
            if children:
                self.stack.append(children[::-1])
            for leaf in (node for node in nodes if not node.children):
                self._finish(leaf)
            self.open_nodes -= len(nodes)
            self.changed.notify_all()

    def _finish(self, node: Node) -> None:
        node.keys = None  # a long leaf has some, having been cut
        while node.parent is not None:
            node = node.parent
            node.unfinished -= 1
            if node.unfinished:
                return
            node.keys = None
            self.kept_tokens -= node.kept
