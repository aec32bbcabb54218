"""Run the prompt of several sequences once: positions of a pack that are equal become one row.

K responses to a prompt begin with the same tokens, and in a causal model with the same hidden states. Norms and linear
layers run on rows; attention reads each sequence whole, from copies of the rows. Shapes: T tokens of the pack, U rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 0.8  # largest share of rows to tokens at which fewer rows are worth the copies for attention


@dataclass(frozen=True)
class SharedRows:
    """Which row each token reads, and a token of each row.

    row_T     int64 [T]: the row of each token
    token_U   int64 [U]: the first token of each row
    copies    (rows, tokens), int64 each: the tokens of rows that are met a second time, a third time, ...;
              rows are unique in each, so that sums over tokens have one order on a GPU too
    """

    row_T: Tensor
    token_U: Tensor
    copies: tuple[tuple[Tensor, Tensor], ...]

    def take(self, x_T: Tensor) -> Tensor:
        """Return [U, ...] of x [T, ...], which is equal in all tokens of a row."""
        return _Take.apply(x_T, self)

    def spread(self, x_U: Tensor) -> Tensor:
        """Return [T, ...]: for each token the value of its row."""
        return _Spread.apply(x_U, self)


def shared_rows(
    lengths: Sequence[int], prompts: Sequence[tuple[int, int]], device: torch.device | str
) -> SharedRows | None:
    """Return the rows of sequences end to end; None if sharing prompts saves too little. `prompts`: see PackedBatch."""
    num_tokens, shared_once = sum(lengths), sum(dict(prompts).values())
    if num_tokens - sum(n for _, n in prompts) + shared_once > MOST * num_tokens:
        return None
    row_parts, token_parts, copies = [], [], []
    first_row: dict[int, int] = {}
    met: dict[int, int] = {}
    num_rows = start = 0
    for length, (prompt, shared) in zip(lengths, prompts):
        times = met[prompt] = met.get(prompt, 0) + 1
        own = shared if times > 1 else 0  # tokens before it have rows already
        prompt_row = first_row.setdefault(prompt, num_rows)
        if own:
            part = (torch.arange(prompt_row, prompt_row + own), torch.arange(start, start + own))
            if len(copies) < times - 1:
                copies.append([])
            copies[times - 2].append(part)
            row_parts.append(part[0])
        row_parts.append(torch.arange(num_rows, num_rows + length - own))
        token_parts.append(torch.arange(start + own, start + length))
        num_rows += length - own
        start += length
    row_T, token_U = (torch.cat(parts).to(device, non_blocking=True) for parts in (row_parts, token_parts))
    moved = (tuple(torch.cat(parts).to(device, non_blocking=True) for parts in zip(*copy)) for copy in copies)
    return SharedRows(row_T, token_U, tuple(moved))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_T: Tensor, shared: SharedRows) -> Tensor:
        ctx.shared = shared
        return x_T.index_select(0, shared.token_U)

    @staticmethod
    def backward(ctx, grad_U: Tensor) -> tuple[Tensor, None]:
        grad_T = grad_U.new_zeros(ctx.shared.row_T.shape[0], *grad_U.shape[1:])
        grad_T[ctx.shared.token_U] = grad_U  # each token at most once
        return grad_T, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_U: Tensor, shared: SharedRows) -> Tensor:
        ctx.shared = shared
        return x_U.index_select(0, shared.row_T)

    @staticmethod
    def backward(ctx, grad_T: Tensor) -> tuple[Tensor, None]:
        sum_U = grad_T.index_select(0, ctx.shared.token_U).float()  # of up to K numbers: bfloat16 would round each sum
        for rows, tokens in ctx.shared.copies:
            sum_U.index_add_(0, rows, grad_T.index_select(0, tokens).float())
        return sum_U.to(grad_T.dtype), None
