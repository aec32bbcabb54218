"""Read and write a trained parameter's float32 master and AdamW moments in any ZeRO stage, whole on every rank."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed.world import World
from engine.training.master_weights import MasterWeights

if importlib.util.find_spec("deepspeed"):
    import deepspeed
    from deepspeed.utils import (
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

# A checkpoint keeps the float32 master and AdamW's two moments of each trained parameter, in any ZeRO stage.
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter, also where ZeRO-3 holds a part."""
    return getattr(parameter, "ds_shape", parameter.shape)


class ZeroState:
    """What AdamW keeps of each trained parameter: the master under WEIGHT, and MOMENTS.

    In stage 0 a parameter has its own tensors, in stages 1 and 2 a range of a rank's flat ones, in stage 3 a part on
    each rank. All ranks call `whole` and `write`.
    """

    def __init__(self, optimizer: Any, masters: MasterWeights | None, stage: int, world: World):
        self.optimizer, self.masters, self.stage, self.world = optimizer, masters, stage, world
        # Trained weights while others are in their place, where there is no master.
        self._aside: dict[nn.Parameter, Tensor] = {}
        if stage == 0:
            self._allocate_moments()

    def gathered(self, parameter: nn.Parameter, **options: Any) -> contextlib.AbstractContextManager:
        """Return a context in which the parameter is whole; ZeRO-3 holds parts."""
        if self.stage != 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters([parameter], **options)

    def set_aside(self, parameter: nn.Parameter) -> None:
        """Keep a copy of a weight that is about to be replaced, if it has no master: `whole` returns it."""
        if self.stage == 0 and self.masters is None:
            self._aside.setdefault(parameter, parameter.detach().to("cpu", copy=True))

    def steps_taken(self) -> float:
        """Return the number of steps that AdamW has taken on the parameters that had a gradient."""
        steps = {float(state["step"]) for state in self._adamw.state.values()} - {0.0}  # 0: never had a gradient
        assert len(steps) <= 1, steps
        return steps.pop() if steps else 0.0

    def start_partitions(self, step: Tensor) -> None:
        """Give the flat tensors moments of zero at this step, before `write` fills them. Nothing to do in stage 0."""
        for flat in self._partitions:
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._adamw.state[flat] = {"step": step.to(flat.device, copy=True), **moments}

    def whole(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        """Return the master or a moment, float32, shaped as the parameter."""
        if self.stage == 0:
            stepped = self.masters.of(parameter) if self.masters else parameter
            if key == WEIGHT and parameter in self._aside:
                return self._aside[parameter]
            state = self._adamw.state[stepped]
            if key == WEIGHT:
                return stepped
            return state[key] if state["step"] else None
        if self.stage == 3:
            if key == WEIGHT:
                return safe_get_full_fp32_param(parameter)
            return safe_get_full_optimizer_state(parameter, key)
        whole = torch.zeros(parameter.numel(), device=self.world.device)
        if parameter._hp_mapping is not None:
            where, part = self._part(parameter, key)
            whole[where] = part.to(whole.device)
        # Sum as integers: as floats, -0.0 plus the other ranks' 0.0 would become 0.0.
        return self.world.sum(whole.view(torch.int32)).view(torch.float32).view_as(parameter)

    def write(self, parameter: nn.Parameter, key: str, value: Tensor, step: Tensor) -> None:
        """Write the master or a moment, given whole on every rank, and in stage 0 the step it belongs to."""
        if self.stage == 0:
            stepped = self.masters.of(parameter) if self.masters else parameter
            if key == WEIGHT:
                stepped.data.copy_(value)
            else:
                state = self._adamw.state[stepped]
                state["step"].copy_(step)
                state[key].copy_(value)
        elif self.stage == 3:
            size = parameter.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
            mine = padded[size * self.world.rank : size * (self.world.rank + 1)]
            if key == WEIGHT:
                safe_set_local_fp32_param(parameter, mine)
                with self.gathered(parameter, modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                safe_set_local_optimizer_state(parameter, mine, key)
        elif parameter._hp_mapping is not None:
            where, part = self._part(parameter, key)
            part.copy_(value.flatten()[where])

    @property
    def _adamw(self) -> torch.optim.AdamW:
        return self.optimizer.optimizer if self.stage else self.optimizer

    def _allocate_moments(self) -> None:
        """Allocate AdamW's moments, which torch does at the first step, when activations have split the memory.

        The higher stages of DeepSpeed do so, too. What is free afterwards can go to the cache of keys and values.
        """
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                moments = {key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in MOMENTS}
                self._adamw.state[p] = {"step": torch.zeros((), device=p.device), **moments}

    @property
    def _partitions(self) -> list[Tensor]:
        """The flat float32 tensors that AdamW updates on this rank instead of the parameters; none in stage 0."""
        if self.stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._adamw.param_groups for p in group["params"]] if self.stage else []

    def _part(self, parameter: nn.Parameter, key: str) -> tuple[slice, Tensor]:
        """Stages 1 and 2: return which elements of a parameter this rank holds, and its part of the master or moment.

        DeepSpeed's safe_get_full_optimizer_state finds the moments of the first parameter group only.
        """
        mapping = parameter._hp_mapping
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = self._partitions[mapping.param_group_index]
        held = flat.data if key == WEIGHT else self._adamw.state[flat][key]
        return slice(there.start, there.start + there.numel), held[here.start : here.start + here.numel]
