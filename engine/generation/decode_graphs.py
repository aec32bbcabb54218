"""The layers of a decode step as CUDA graphs, one for each of a few batch sizes: launched at once, without Python.

A graph runs a fixed number of rows; those behind the step's own are blank and write to a page of nobody's. Shapes: S
rows, D model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from engine.generation.decode_inputs import DecodeInputs
from engine.generation.kv_cache import KVCache

Outputs = tuple[Tensor, Tensor]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]


def batch_sizes(most: int) -> list[int]:
    """Powers of two and, from 24 on, what lies half-way between, up to `most`: less than half of the rows is blank."""
    powers = range(most.bit_length())
    sizes = {1 << k for k in powers} | {3 << k for k in powers if k >= 3}
    return sorted({n for n in sizes if n < most} | {most})


class DecodeGraphs:
    """A graph a batch size: of the largest at once, of the others when they are first wanted."""

    def __init__(self, inputs: DecodeInputs, split: int, capture: Capture):
        self.inputs, self.split, self.capture = inputs, split, capture
        self.sizes = batch_sizes(inputs.max_rows)
        self._graphs = {inputs.max_rows: self._of_size(inputs.max_rows)}

    @classmethod
    def of(cls, model, cache: KVCache, num_slots: int, pages_a_row: int, split: int) -> DecodeGraphs | None:
        """None where they cannot be had: without a spare page (on a CPU) or, which is said, where capturing fails."""
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
        """Of the rows that the inputs were filled with, [S, D] behind the layers below `split` and behind the last;
        to be read before the next step."""
        size = next(n for n in self.sizes if n >= rows)
        if size not in self._graphs:
            self._graphs[size] = self._of_size(size)
        replay, (trunk_SD, out_SD) = self._graphs[size]
        replay()
        return trunk_SD[:rows], out_SD[:rows]


def capture_on_cuda() -> Capture:
    """Capture into graphs that share the memory of what lies between their kernels: only one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # compiles what is not compiled, and makes what is made once and kept
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs

    return capture
