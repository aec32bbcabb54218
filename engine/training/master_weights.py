"""float32 masters of a bfloat16 module, for one rank: its gradients are summed in them, AdamW moves them alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MasterWeights(nn.Module):
    """A float32 copy of each trained parameter of a module, in place of the module for DeepSpeed and AdamW.

    A gradient of the module is added to its master's as soon as backward has it, and is not kept: with one microbatch
    it is written once, in float32. `write` rounds the masters into the module after a step.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        trained = [p for p in module.parameters() if p.requires_grad]
        self.masters = nn.ParameterList([p.detach().float() for p in trained])  # registered: DeepSpeed sees them
        self._of = dict(zip(trained, self.masters))
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The master of one of the module's trained parameters."""
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
