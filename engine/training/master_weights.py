"""float32 master weights of a bfloat16 module, for one rank: they sum its gradients, and AdamW updates them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MasterWeights(nn.Module):
    """A float32 copy of each trained parameter, which DeepSpeed and AdamW see instead of the module.

    The backward pass adds each gradient to its master's at once and frees it. After a step, `write` rounds the masters
    into the module.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        trained = [p for p in module.parameters() if p.requires_grad]
        self.masters = nn.ParameterList(
            [p.detach().float() for p in trained]
        )  # registered, so that DeepSpeed sees them
        self._of = dict(zip(trained, self.masters))
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the master of a trained parameter."""
        return self._of[parameter]

    @torch.no_grad()
    def write(self) -> None:
        """Round the masters into the module."""
        torch._foreach_copy_(list(self._of), list(self._of.values()))

    def _take_gradient(self, parameter: Tensor) -> None:
        master, gradient = self._of[parameter], parameter.grad
        parameter.grad = None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient
