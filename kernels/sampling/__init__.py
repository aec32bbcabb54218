"""Sample one token per row of logits, with its log-probability and the row's logsumexp, in one pass where possible."""

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
    eos_masked_S: Tensor | None = None,
    eos_ids_E: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return token_S int64 [S], logprob_S and logsumexp_S float32 [S] of logits_SV; uniform_S float64 [S] in [0, 1).

    The scores are the logits divided by the temperature; those of tokens in history_SN (int64 [S, N], -1 for none)
    divided by the repetition penalty where positive and multiplied by it where not; those of eos_ids_E (int64 [E])
    minus infinity in rows of eos_masked_S (bool [S]). A token is kept when fewer than top_k have a larger score (0: any
    number), the share of those larger in what top_k kept is below top_p, and its own share is at least min_p times the
    largest; ties are kept or left together. The token chosen is the first, in the vocabulary's order, whose cumulative
    share of what is kept passes uniform; at temperature 0 the first of the largest score.

    logprob and logsumexp are of the tempered logits, before penalty, mask and truncation; at temperature 0, of the
    logits. A row does not depend on other rows. A row with NaN or infinity, or without an allowed token, gives token 0
    and a NaN log-probability.
    """
    how = (temperature, top_k, top_p, min_p, repetition_penalty, history_SN, eos_masked_S, eos_ids_E)
    if logits_SV.device.type == "cpu" and logits_SV.dtype in DTYPES and library() is not None:
        return sample_cpu(logits_SV, uniform_S, *how)
    return sample_eager(logits_SV, uniform_S, *how)
