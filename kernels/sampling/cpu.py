"""Sampling on CPU: call the C++ (cpu.cpp) with pointers."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels.common import native

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "cpu.cpp", FOLDER.parent / "common" / "vector.h")
DTYPES = (torch.float32, torch.bfloat16)


class Call(ctypes.Structure):
    """`struct Call` of cpu.cpp, field by field."""

    _fields_ = (
        *((x, ctypes.c_void_p) for x in ("logits", "uniform", "history", "mask_eos", "eos_ids")),
        *((x, ctypes.c_void_p) for x in ("token", "logprob", "logsumexp")),
        *((x, ctypes.c_int64) for x in ("rows", "row_stride", "vocabulary", "history_width", "num_eos_ids")),
        *((x, ctypes.c_int64) for x in ("top_k", "threads")),
        *((x, ctypes.c_float) for x in ("temperature", "repetition_penalty")),
        *((x, ctypes.c_double) for x in ("top_p", "min_p")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the built kernel, or None where there is no compiler."""
    lib = native.load("sampling", SOURCES)
    if lib is not None:
        lib.sample.argtypes, lib.sample.restype = [ctypes.POINTER(Call), ctypes.c_int], None
    return lib


def sample_cpu(
    logits_SV: Tensor,
    uniform_S: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history_SN: Tensor | None = None,
    mask_eos_S: Tensor | None = None,
    eos_ids_E: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.sampling.sample_rows`."""
    rows, vocabulary = logits_SV.shape
    logits_SV = logits_SV if logits_SV.stride(1) == 1 else logits_SV.contiguous()
    tensors = [uniform_S, history_SN, mask_eos_S, eos_ids_E]
    dtypes = (torch.float64, torch.int64, torch.bool, torch.int64)
    assert all(x is None or x.dtype == dtype for x, dtype in zip(tensors, dtypes))
    tensors = [x if x is None else x.contiguous() for x in tensors]
    token_S = torch.empty(rows, dtype=torch.int64)
    logprob_S, logsumexp_S = torch.empty(2, rows)
    call = Call(
        *(None if x is None else x.data_ptr() for x in (logits_SV, *tensors, token_S, logprob_S, logsumexp_S)),
        *(rows, logits_SV.stride(0), vocabulary),
        *(0 if history_SN is None else history_SN.shape[1], 0 if eos_ids_E is None else len(eos_ids_E)),
        *(top_k, native.threads(), temperature, repetition_penalty, top_p, min_p),
    )
    library().sample(call, logits_SV.element_size())
    return token_S, logprob_S, logsumexp_S
