"""Count what a function would launch on a GPU: operations of torch, their bytes read and written, and Triton kernels.

An operation of torch counts as one launch, though some (sort, topk, cumsum) launch several; views and new memory count
as none.
"""

from __future__ import annotations

from collections import Counter

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Context manager: `names` counts launches by name, `bytes` are of torch's operations alone.

    Give it monkeypatch to count Triton kernels too, in the interpreter. Without `compute` those do nothing: for tensors
    of any size on the device meta.
    """

    def __init__(self, monkeypatch=None, compute: bool = True):
        super().__init__()
        self.names, self.bytes, self._inside = Counter(), 0, False
        if monkeypatch is not None:
            self._watch_triton(monkeypatch, compute)

    def _watch_triton(self, monkeypatch, compute):
        from triton.runtime.interpreter import InterpretedFunction

        own_run = InterpretedFunction.run

        def run(kernel, *args, **kwargs):
            self.names[kernel.fn.__name__] += 1
            self._inside = True  # the interpreter's own tensors
            try:
                return own_run(kernel, *args, **kwargs) if compute else None
            finally:
                self._inside = False

        assert triton.knobs.runtime.interpret
        monkeypatch.setattr(InterpretedFunction, "run", run)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self._inside and name not in MEMORY and not _is_view(func):
            self.names[name] += 1
            self.bytes += sum(_bytes(x) for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
        return out

    @property
    def count(self) -> int:
        return sum(self.names.values())


def _is_view(func) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bytes(x: torch.Tensor) -> int:
    """The size of what the tensor covers: an expanded dimension is read once."""
    elements = 1
    for size, stride in zip(x.shape, x.stride()):
        elements *= size if stride else 1
    return elements * x.element_size()
