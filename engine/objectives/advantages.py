"""Compute rewards, generalised advantages, returns and whitening over the action columns of a pack."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.segment_scan import segment_scan


def action_rewards(kl_T: Tensor, action_T: Tensor, sequence_T: Tensor, score_S: Tensor, kl_coef: float) -> Tensor:
    """Return float32 [T]: -kl_coef * kl at each action, plus the sequence's score at its last action, 0 elsewhere.

    kl_T float32 [T]; action_T bool [T]; sequence_T int64 [T]; score_S float32 [S].
    """
    columns_A = action_T.nonzero()[:, 0]
    owner_A = sequence_T[columns_A]
    last = torch.ones_like(owner_A, dtype=torch.bool)
    last[:-1] = owner_A[1:] != owner_A[:-1]
    reward_T = torch.where(action_T, -kl_coef * kl_T, 0.0)
    reward_T[columns_A[last]] += score_S[owner_A[last]]
    return reward_T


def gae(
    reward_T: Tensor, value_T: Tensor, action_T: Tensor, sequence_T: Tensor, gamma: float, lam: float, max_len: int
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the actions of each sequence.

    delta_t = r_t + gamma V_{t+1} - V_t, where t + 1 is the sequence's next action and V is 0 after its last one;
    A_t = delta_t + gamma lambda A_{t+1}. Columns without an action are skipped and do not count as time.
    Returns (advantage_T, return_T), float32 [T], 0 without an action; returns are advantages + values.
    """
    columns_A = action_T.nonzero()[:, 0]
    owner_A, value_A = sequence_T[columns_A], value_T[columns_A]
    next_A = torch.zeros_like(value_A)
    next_A[:-1] = torch.where(owner_A[1:] == owner_A[:-1], value_A[1:], 0.0)
    delta_A = reward_T[columns_A] + gamma * next_A - value_A
    advantage_A = segment_scan(delta_A, owner_A, gamma * lam, max_len)
    advantage_T, return_T = torch.zeros_like(value_T), torch.zeros_like(value_T)
    advantage_T[columns_A] = advantage_A
    return_T[columns_A] = advantage_A + value_A
    return advantage_T, return_T


def moments(x_T: Tensor, select_T: Tensor) -> Tensor:
    """Return float64 [3]: count, sum and sum of squares of the selected columns. Sum them over ranks."""
    x = x_T[select_T].double()
    return torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), x.square().sum()])


def whiten(x_T: Tensor, select_T: Tensor, moments_3: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8) where selected, 0 elsewhere, from summed moments."""
    count, total, squares = moments_3.unbind()
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    white = (x_T.double() - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(select_T, white, 0.0).to(x_T.dtype)
