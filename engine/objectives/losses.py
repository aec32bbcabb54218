"""The objectives as pure functions of columns: float32 in, sums out, no models and no ranks.

Every loss is a sum; the trainer divides once by the global count. Shapes: A selected action columns, T all columns,
S sequences, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_pairs(ranks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return all pairs of a batch of rankings: int64 better_P, worse_P, and float32 weight_P.

    `ranks` has one list per prompt, 1 = best, equal = tie; responses are numbered through the batch. Ties give no pair.
    Weights are 1 / (pairs of the prompt), so that prompts weigh equally.
    """
    better, worse, weight, first = [], [], [], 0
    for prompt in ranks:
        pairs = [(i, j) for i, a in enumerate(prompt) for j, b in enumerate(prompt) if a < b]
        better += [first + i for i, _ in pairs]
        worse += [first + j for _, j in pairs]
        weight += [1.0 / max(1, len(pairs))] * len(pairs)
        first += len(prompt)
    return torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long), torch.tensor(weight)


def ranking_loss(score_S: Tensor, better_P: Tensor, worse_P: Tensor, weight_P: Tensor) -> Tensor:
    """Sum over prompts of the mean over pairs of -log sigmoid(s_better - s_worse) (Ouyang et al. 2022, eq. 1)."""
    return -(weight_P * logsigmoid(score_S[better_P] - score_S[worse_P])).sum()


def kl_estimate(logprob_T: Tensor, ref_logprob_T: Tensor, estimator: str) -> Tensor:
    """Estimate KL(policy || reference) per action from samples of the policy (Schulman 2020, "Approximating KL").

    k1: log ratio, unbiased; k2: half its square; k3: exp(-log ratio) - 1 + log ratio, unbiased and never negative.
    Unbiased for samples of the whole distribution: top-k and top-p cut it.
    """
    log_ratio = logprob_T - ref_logprob_T
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    assert estimator == "k3", estimator
    return torch.expm1(-log_ratio) + log_ratio


def policy_loss(
    logprob_A: Tensor, old_logprob_A: Tensor, advantage_A: Tensor, clip: float, weight_A: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return minus the sum of PPO's clipped surrogate (Schulman et al. 2017, eq. 7), and how many are clipped."""
    ratio = (logprob_A - old_logprob_A).exp()
    unclipped = -advantage_A * ratio
    clipped = -advantage_A * ratio.clamp(1 - clip, 1 + clip)
    return weighted_sum(torch.maximum(unclipped, clipped), weight_A), (clipped > unclipped).sum()


def value_loss(
    value_A: Tensor, old_value_A: Tensor, return_A: Tensor, clip: float, weight_A: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of 0.5 * max(unclipped, clipped) squared error, and how many are clipped (Ziegler et al. 2019)."""
    unclipped = (value_A - return_A).square()
    kept = torch.maximum(torch.minimum(value_A, old_value_A + clip), old_value_A - clip)
    clipped = (kept - return_A).square()
    return 0.5 * weighted_sum(torch.maximum(unclipped, clipped), weight_A), (clipped > unclipped).sum()


def kl_loss(logprob_A: Tensor, ref_logprob_A: Tensor, estimator: str, weight_A: Tensor | None = None) -> Tensor:
    """Return the sum of the KL estimates, as a loss: the gradient goes through the estimator.

    For samples of the policy, the expected gradient of k2 is that of KL(policy || reference), that of k3 is that of
    KL(reference || policy), and that of k1 is 0. Samples of an older policy are not reweighted.
    """
    return weighted_sum(kl_estimate(logprob_A, ref_logprob_A, estimator), weight_A)


def pretraining_loss(logprob_A: Tensor, coef: float, count: int) -> Tensor:
    """Return coef times minus the sum of the log-probabilities, divided by the `count` of all tokens of the step."""
    return -coef * logprob_A.sum() / count


def weighted_sum(x_A: Tensor, weight_A: Tensor | None) -> Tensor:
    """Return the sum of x_A * weight_A; without weights, of x_A."""
    return x_A.sum() if weight_A is None else (x_A * weight_A).sum()


def mean_per_sequence(sequence_A: Tensor, num_sequences: int) -> Tensor:
    """Return float32 [A], 1 / the number of actions of the action's sequence: weights of a sum of means."""
    return 1.0 / torch.bincount(sequence_A, minlength=num_sequences)[sequence_A].float()
