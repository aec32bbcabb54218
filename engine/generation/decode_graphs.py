"""CUDA graphs of a decode step's layers, one for each of a few batch sizes: one launch, without Python.

A graph runs a fixed number of rows. Rows after those of the step are blank and write to the spare page. Shapes: S rows,
D model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from engine.generation.decode_inputs import DecodeInputs
from engine.generation.kv_cache import KVCache

T = TypeVar("T")
Outputs = tuple[Tensor, Tensor]
Capture = Callable[[Callable[[], T]], tuple[Callable[[], None], T]]


def batch_sizes(most: int) -> list[int]:
    """Powers of two and, from 24 on, their midpoints, up to `most`: fewer than half of the rows are blank."""
    powers = range(most.bit_length())
    sizes = {1 << k for k in powers} | {3 << k for k in powers if k >= 3}
    return sorted({n for n in sizes if n < most} | {most})


class DecodeGraphs:
    """One graph per batch size, and one more where rows share pages.

    The one for the most rows is captured at once, the others at first use.
    """

    def __init__(self, inputs: DecodeInputs, split: int, capture: Capture):
        self.inputs, self.split, self.capture = inputs, split, capture
        self.sizes = batch_sizes(inputs.max_rows)
        self._graphs = {(inputs.max_rows, inputs.sharing): self._of_size(inputs.max_rows)}

    @classmethod
    def of(cls, model, cache: KVCache, num_slots: int, pages_a_row: int, split: int) -> DecodeGraphs | None:
        """Return None without a spare page (on a CPU), or with a note where capturing fails."""
        if cache.spare_page is None:
            return None
        inputs = DecodeInputs(model, cache, num_slots, pages_a_row)
        try:
            return cls(inputs, split, capture_on_cuda())
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            print(f"no CUDA graphs, decode steps run call by call: {reason}", file=sys.stderr, flush=True)
            return None

    @torch.no_grad()
    def _of_size(self, size: int) -> tuple[Callable[[], None], Outputs]:
        return self.capture(lambda: self.inputs.run(size, self.split))

    def run(self, rows: int) -> Outputs:
        """Return the hidden states after the layers below `split` and after the last layer, [S, D] each.

        The next step overwrites both.
        """
        size = next(n for n in self.sizes if n >= rows)
        key = size, self.inputs.sharing
        if key not in self._graphs:
            self._graphs[key] = self._of_size(size)
        replay, (trunk_SD, out_SD) = self._graphs[key]
        replay()
        return trunk_SD[:rows], out_SD[:rows]


def capture_on_cuda() -> Capture:
    """Return a function that captures graphs. They share a stream, so one workspace of cuBLAS, and their memory.

    Sharing memory is right because only one graph runs at a time.
    """
    pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # compile kernels and fill caches before the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs

    return capture
