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

from engine.errors import UserError
from evaluation.branches import GPU_ROWS, Branches, Piece
from evaluation.prefix_tree import Node, Tree, build_tree
from evaluation.requests import Document


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
    cache_tokens  tokens whose keys and values are kept at most, beside one path for each further thread
    num_threads   forwards side by side on a CPU; each runs on one core, see evaluation/branches.py
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
        self.running = self.kept_tokens = 0
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
            while nodes := self._take():
                for pieces in self._forwards(nodes):
                    if self.stopped:
                        return
                    places, logprob = branches.forward(pieces)
                    if places:
                        self.answers.put((places, logprob.tolist()))
                    with self.changed:
                        self.work.forwards += 1
                        self.work.positions_computed += sum(piece.stop - piece.start for piece in pieces)
                self._done(nodes)
            self.answers.put(None)
        except BaseException as error:  # noqa: BLE001  raised again by the thread that reads the answers
            self.answers.put(error)

    def _take(self) -> list[Node]:
        """What to compute next: nodes off the stack until they fill a forward. Empty when all is done.

        Every node on the stack is ready, its ancestors being computed. Waits while others may add some.
        """
        with self.changed:
            while not self.stack and self.running and not self.stopped:
                self.changed.wait()
            nodes: list[Node] = []
            size, kept, below = 0, self.kept_tokens, 0
            while self.stack and size < self.batch_tokens and not self.stopped:
                node = self.stack[-1][-1]
                size, kept, below = size + len(node.tokens), kept + node.kept, max(below, node.below)
                # One node is always taken: what it needs beside its ancestors was left free for it.
                if nodes and kept + below > self.scorer.cache_tokens:
                    break
                nodes.append(self.stack[-1].pop())
                if not self.stack[-1]:
                    self.stack.pop()
            if nodes:
                self.running += 1
                self.kept_tokens += sum(node.kept for node in nodes)
                self.work.peak_kept_tokens = max(self.work.peak_kept_tokens, self.kept_tokens)
            return nodes

    def _forwards(self, nodes: list[Node]) -> Iterator[list[Piece]]:
        """The nodes end to end, cut into forwards of batch_tokens: a node that is cut goes on in the next one."""
        pieces, room = [], self.batch_tokens
        for node in nodes:
            start = node.start
            while start < node.stop:
                stop = min(node.stop, start + room)
                pieces.append(Piece(node, start, stop))
                room, start = room - (stop - start), stop
                if not room:
                    yield pieces
                    pieces, room = [], self.batch_tokens
        if pieces:
            yield pieces

    def _done(self, nodes: list[Node]) -> None:
        """Free what no branch needs any more, and put the children on the stack."""
        with self.changed:
            children = [child for node in nodes for child in node.children]
            if children:
                self.stack.append(children[::-1])
            for leaf in (node for node in nodes if not node.children):
                self._finish(leaf)
            self.running -= 1
            self.changed.notify_all()

    def _finish(self, node: Node) -> None:
        while node.parent is not None:
            node = node.parent
            node.unfinished -= 1
            if node.unfinished:
                return
            node.keys = None
            self.kept_tokens -= node.kept
