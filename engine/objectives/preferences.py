"""Direct preference optimisation as pure functions: implicit rewards of responses, and losses over ranked ones.

Sums over prompts come out; the trainer divides once by the global count. Shapes: A selected action columns, S
responses. `ranks` has one list per prompt, 1 = best, equal = tie; responses are numbered through the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import on_device
from engine.objectives.losses import ranking_loss, ranking_pairs


def sums_of(x_A: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return float64 [S]: the sum of each response's `lengths[s]` columns, which lie end to end.

    float64, because losses take differences of such sums, which are small beside them. Each is a sum of its own, so
    that it has the same bits in every run, on a GPU too.
    """
    return torch.stack([part.sum(dtype=torch.float64) for part in x_A.split(list(lengths))])


def implicit_rewards(logprob_S: Tensor, ref_logprob_S: Tensor, beta: float, length_S: Tensor | None = None) -> Tensor:
    """Return float32 [S]: beta * log(policy / reference) of each response (Rafailov et al. 2023, eq. 5).

    Both log-probabilities are float64. The prompt's constant is left out, because losses compare responses of one
    prompt. With `length_S`, divided by the number of the response's tokens.
    """
    reward_S = beta * (logprob_S - ref_logprob_S)
    return (reward_S if length_S is None else reward_S / length_S).float()


def pairs_loss(reward_S: Tensor, ranks: Sequence[Sequence[int]], smoothing: float = 0.0) -> Tensor:
    """Sum over prompts of the mean over pairs of different ranks of -log sigmoid(r_better - r_worse) (eq. 7).

    `smoothing` is the probability that a pair is the wrong way round: its loss is then (1 - smoothing) times its own
    plus smoothing times that of the reversed pair (Mitchell 2023, conservative DPO).
    """
    better_P, worse_P, weight_P = (x.to(reward_S.device, non_blocking=True) for x in ranking_pairs(ranks))
    loss = ranking_loss(reward_S, better_P, worse_P, weight_P)
    if smoothing:
        reversed_loss = ranking_loss(reward_S, worse_P, better_P, weight_P)
        loss = (1 - smoothing) * loss + smoothing * reversed_loss
    return loss


def plackett_luce_loss(reward_S: Tensor, ranks: Sequence[Sequence[int]]) -> Tensor:
    """Sum over prompts of -log of the ranking's Plackett-Luce probability (Rafailov et al. 2023, appendix A.3).

    Each response is chosen among itself and all that rank below it: log sum exp of their rewards minus its own. Tied
    responses are each chosen against those below them and never compared with one another. For two responses this is
    `pairs_loss`; for a ranking without ties, the probability of the whole order.
    """
    size = sum(map(len, ranks))
    left_out_SS = torch.ones(size, size, dtype=torch.bool)
    first = 0
    for prompt in ranks:
        rank_K = torch.tensor(list(prompt))
        here = slice(first, first + len(prompt))
        left_out_SS[here, here] = rank_K[:, None] >= rank_K[None, :]
        first += len(prompt)
    left_out_SS.fill_diagonal_(False)
    choices_SS = reward_S.expand(size, size).masked_fill(left_out_SS.to(reward_S.device, non_blocking=True), -torch.inf)
    return (choices_SS.logsumexp(1) - reward_S).sum()


def best_loss(logprob_S: Tensor, length_S: Tensor, ranks: Sequence[Sequence[int]]) -> Tensor:
    """Sum over prompts of -log p per token of the best response (Pang et al. 2024); a mean over ties."""
    weights = [float(rank == min(prompt)) / prompt.count(min(prompt)) for prompt in map(list, ranks) for rank in prompt]
    weight_S = on_device(weights, logprob_S.dtype, logprob_S.device)
    return -(weight_S * logprob_S / length_S).sum().float()
