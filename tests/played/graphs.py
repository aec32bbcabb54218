"""CUDA graphs on the played device: the launches of a capture, run again in their order on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tests.played.counts import Counts, count, counting

Launch = tuple[Callable[[], Any], list[Tensor]]
captured: list[Counts] = []  # what each capture counted, in their order
_recording: list[Launch] | None = None


def record(run: Callable[[], Any], made: list[Tensor]) -> None:
    """Add a launch to the graph that is being captured, if there is one; `made` is host memory that it wrote."""
    if _recording is not None:
        _recording.append((run, made))


def refuse(what: str) -> None:
    """RuntimeError while a graph is being captured."""
    if _recording is not None:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


class PlayedGraph:
    """torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def replay(self) -> None:
        """Run the launches, and nothing of Python between them: the host's numbers are those of the capture."""
        count("launches", "a graph")
        for run, made in self.launches:
            for kept, new in zip(made, (x for x in torch.utils._pytree.tree_leaves(run()) if isinstance(x, Tensor))):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


@contextmanager
def capture(graph: PlayedGraph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """torch.cuda.graph."""
    global _recording
    _recording = graph.launches
    try:
        with counting() as counts:
            yield
    finally:
        _recording = None
    captured.append(counts)


class PlayedStream:
    """torch.cuda.Stream: there is one, and it is always done."""

    def wait_stream(self, other: PlayedStream) -> None:
        pass


def install() -> None:
    """Put these in torch's place."""
    torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.graph_pool_handle = PlayedGraph, capture, lambda: (0, 0)
    torch.cuda.Stream, torch.cuda.stream = PlayedStream, nullcontext
    torch.cuda.current_stream = lambda device=None: PlayedStream()
