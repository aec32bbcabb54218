"""The model that generates rollouts, with its cache: a frozen trunk, and the trained top brought into it each time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.generation.workspace import Workspace
from engine.models.quantised import tensors_of
from engine.training.context import Context
from engine.training.export import body_weights
from engine.training.modules import Policy
from engine.training.sharded import ShardedWeights
from engine.training.trunk import kept_rows, trunk_parameters
from engine.training.zero import ZeroStep


class Actor:
    """Holds `model`, whose layers from `split` on are the policy's.

    ZeRO-3 keeps the policy's weights in parts. There the actor has a top of its own that `publish` fills, and each
    rank holds a part of the trunk while nothing reads it. With --park-trunk, that part is in host memory.
    """

    def __init__(self, model: torch.nn.Module, policy: Policy, split: int | None, context: Context):
        self.model, self.device = model, context.world.device
        self.workspace = Workspace(context.stage.cache_tokens)
        self.cache_bytes = context.batch.trunk_cache * 1e9
        trunk = [] if split is None else trunk_parameters(model, split)
        head = {id(w) for w in tensors_of(model.head_weight)}
        # The head is read in every update, so it stays whole.
        self.parks = context.stage.park_trunk
        self.trunk = ShardedWeights([w for _, w in trunk if id(w) not in head], context.world, self.parks)
        self.sharded = context.ds_config.get("zero_optimization", {}).get("stage", 0) == 3
        if self.sharded:
            policy.body = copy.deepcopy(policy.body).requires_grad_(True)
            model.requires_grad_(False)

    def gather(self) -> None:
        """Make the trunk whole on every rank. All ranks call it."""
        self.trunk.gather()

    def release(self) -> None:
        """Give back the memory of the other ranks' parts of the trunk, under ZeRO-3, or of all of it, if parked.

        And that of the cache: its graphs are of no more use, because the trunk comes back at another address.
        """
        if self.sharded or self.parks:
            self.trunk.release()
            self.workspace.release()

    def publish(self, zero: ZeroStep) -> None:
        """Bring the trained weights into the model. Without ZeRO-3 they are the same tensors."""
        if zero.stage == 3:
            own = dict(self.model.named_parameters())
            for name, weight in body_weights(zero.state_dict()).items():
                own[name].data.copy_(weight)

    def keep(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        """Trunk outputs end to end, on the device while --trunk-cache allows it, else in host memory."""
        return kept_rows(parts, self.cache_bytes, self.device)
