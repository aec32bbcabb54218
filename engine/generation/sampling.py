"""Sample tokens: penalty, temperature, top-k, top-p and min-p, by inverse transform of one uniform per sequence.

Shapes: S sequences, V vocabulary, N tokens of history, E ids that end a response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from engine.base.errors import UserError
from kernels.sampling import sample_rows


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    temperature 0 is greedy. A token is kept if fewer than top_k tokens are likelier (0: no limit), if the likelier ones
    hold less than top_p of the probability that top_k left (Holtzman et al. 2020; 1: no limit), and if its probability
    is at least min_p of the largest (Nguyen et al. 2024; 0: no limit). Tokens of equal probability are kept or dropped
    together. repetition_penalty divides positive and multiplies negative logits of tokens in the prompt or the response
    (Keskar et al. 2019; 1: none).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"--top-k is {self.top_k}: give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}: give a share above 0, up to 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"--min-p is {self.min_p}: give a share of the likeliest token's, 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"--repetition-penalty is {self.repetition_penalty}: give more than 0; 1 is none")


class Sampled(NamedTuple):
    """token_S int64 [S]; its log-probability and the logsumexp, float32 [S], as `sample` defines them."""

    token_S: Tensor
    logprob_S: Tensor
    logsumexp_S: Tensor


def sample(
    logits_SV: Tensor,
    sampling: Sampling,
    uniform_S: Tensor,
    history_SN: Tensor | None = None,
    eos_masked_S: Tensor | None = None,
    eos_ids_E: Tensor | None = None,
) -> Sampled:
    """Sample one token per row: the first, in vocabulary order, whose cumulative probability exceeds uniform.

    logits_SV float [S, V]; uniform_S float64 [S] in [0, 1). history_SN int64 [S, N], for the repetition penalty: the
    tokens of prompt and response in any order, -1 for none. eos_masked_S bool [S]: rows whose eos_ids_E (int64 [E]) are
    masked.

    logprob_S and logsumexp_S are of the distribution that the trainer sees: logits divided by the temperature, without
    penalty, mask or truncation. For greedy choice the temperature is 1.
    """
    how = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty)
    return Sampled(*sample_rows(logits_SV, uniform_S, *how, history_SN, eos_masked_S, eos_ids_E))
