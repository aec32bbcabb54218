"""What ZeRO-0 on one rank needs of DeepSpeed's engine: accumulate, clip, step. For machines without DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlainEngine:
    """A module and its optimizer, with the methods of DeepSpeed's engine that `ZeroStep` calls, and its bits."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float):
        self.module, self.optimizer, self.max_grad_norm = module, optimizer, max_grad_norm

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Do nothing: there are no other ranks, whose gradients are added at the boundary."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        """Add the gradient of the loss to what was accumulated. It is never scaled."""
        assert not scale_wrt_gas
        loss.backward()

    @torch.no_grad()
    def step(self) -> None:
        """Clip the global norm, update, clear."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).square().sum().sqrt()
        # A quotient of tensors: of a number and a tensor, PyTorch takes a reciprocal and a product, with other bits.
        share = torch.full_like(norm, self.max_grad_norm) / (norm + 1e-6)
        torch._foreach_mul_(gradients, share.clamp(max=1.0))
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
