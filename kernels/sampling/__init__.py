"""Sampling: one token per row of logits, its log-probability and the row's logsumexp, in one pass where possible."""

from __future__ import annotations

from torch import Tensor

from kernels.sampling.cpu import DTYPES, library, sample_cpu
from kernels.sampling.eager import sample_eager
from kernels.sampling.reference import kept_reference

__all__ = ["kept_reference", "sample_rows"]


def sample_rows(
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
    """Return the sampled tokens, int64 [S], their log-probabilities and the rows' logsumexp, float32 [S] both.

    logits_SV [S, V]; uniform_S float64 [S] in [0, 1) are the random numbers. Each row is computed as follows:

    1. Scores are the logits divided by the temperature. logprob and logsumexp come from these, before all other steps;
       at temperature 0 from the logits.
    2. Scores of tokens in history_SN (int64 [S, N], -1 for none) are divided by the repetition penalty where positive,
       and multiplied by it elsewhere. Scores of eos_ids_E (int64 [E]) become -inf in rows of mask_eos_S (bool [S]).
    3. A token is kept if fewer than top_k tokens have a larger score (0: no limit), if the tokens with a larger score
       hold a share below top_p of what top_k keeps, and if its own share is at least min_p times the largest. Equal
       scores are kept or removed together.
    4. The result is the first token in vocabulary order whose cumulative share of the kept tokens exceeds uniform_S. At
       temperature 0 it is the first token with the largest score.

    A row does not depend on other rows. A row with NaN or infinity, or without any possible token, gives token 0 and a
    NaN log-probability. Runs in Triton on CUDA (`fused`), in C++ on a CPU (`cpu`), else in PyTorch (`eager`).
    """
    how = (temperature, top_k, top_p, min_p, repetition_penalty, history_SN, mask_eos_S, eos_ids_E)
    if logits_SV.device.type == "cpu" and logits_SV.dtype in DTYPES and library() is not None:
        return sample_cpu(logits_SV, uniform_S, *how)
    if logits_SV.device.type == "cuda":
        from kernels.sampling.fused import sample_triton  # imported here: triton is not installed everywhere

        return sample_triton(logits_SV, uniform_S, *how)
    return sample_eager(logits_SV, uniform_S, *how)
