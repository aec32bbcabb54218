"""Train a module with DeepSpeed: two methods, backward and step, for ZeRO, offload, precision and clipping.

Only this file and zero_state.py call DeepSpeed.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.base.errors import UserError
from engine.distributed.world import World
from engine.settings import OptimizerSettings
from engine.training.loss_scale import LossScale
from engine.training.master_weights import MasterWeights
from engine.training.plain_engine import PlainEngine
from engine.training.zero_state import MOMENTS, WEIGHT, ZeroState, shape_of

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
if HAS_DEEPSPEED:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

SCALE = "loss_scale"
APART = "apart"  # of a parameter group: whether it has its own learning rate


@dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019); vectors (norms, biases) are not decayed."""

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0


def adamw(settings: OptimizerSettings) -> AdamW:
    """Return AdamW's constants from the settings; the learning rate comes with each step."""
    return AdamW(settings.weight_decay, (settings.beta1, settings.beta2), settings.eps, settings.max_grad_norm)


class ZeroStep:
    """A module, its AdamW state and DeepSpeed around them; without DeepSpeed, stage 0 on one rank, with equal bits.

    bfloat16 and float16 weights have float32 masters: our own in stage 0 on one rank (DeepSpeed would copy all
    gradients several times per step), else DeepSpeed's, sharded over the ranks. The loss scale of float16 is ours. The
    trainer passes losses that are sums already divided by the global count. DeepSpeed averages gradients over ranks and
    accumulated microbatches; this class undoes both, so that the gradient is that of the plain sum. Parameters whose
    names begin with a prefix in `apart` may have a learning rate of their own.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: AdamW,
        world: World,
        ds_config: Mapping[str, Any],
        dtype: torch.dtype,
        apart: tuple[str, ...] = (),
    ):
        self.world = world
        self.apart_lr: float | None = None  # learning rate of the parameters in `apart`, if it is another
        zero = dict(ds_config.get("zero_optimization", {}))
        self.stage = int(zero.get("stage", 0))
        self.module, self.masters, half = module, None, dtype != torch.float32
        self.scale = LossScale(world) if dtype == torch.float16 else None
        self.overflowed = False  # whether the last step was not taken, and can be with the scale that is now smaller
        if half and self.stage == 0 and world.size == 1 and "data_types" not in ds_config:
            self.masters = MasterWeights(module)
        elif half and self.stage == 0:
            self.stage = zero["stage"] = 1  # DeepSpeed shards float32 masters from stage 1 on
        stepped = self.masters or module
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        trained = list(zip(names, (p for p in stepped.parameters() if p.requires_grad), strict=True))
        groups = [
            {
                "params": [p for n, p in trained if (p.ndim > 1) is decays and n.startswith(apart) is own],
                "weight_decay": optimizer.weight_decay if decays else 0.0,
                APART: own,
            }
            for own in (False, True)
            for decays in (True, False)
        ]
        torch_adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True
        )
        if HAS_DEEPSPEED:
            self.engine, self.optimizer = self._deepspeed(stepped, torch_adamw, optimizer, ds_config, zero, dtype)
        elif self.stage or world.size > 1:
            what = f"ZeRO-{self.stage}" if self.stage else f"a run of {world.size} ranks"
            raise UserError(f"{what} needs the package deepspeed, which is missing: pip install deepspeed")
        else:
            self.engine, self.optimizer = PlainEngine(stepped, torch_adamw, optimizer.max_grad_norm), torch_adamw
        self.state = ZeroState(self.optimizer, self.masters, self.stage, world)

    def _deepspeed(
        self,
        stepped: nn.Module,
        torch_adamw: torch.optim.AdamW,
        optimizer: AdamW,
        ds_config: Mapping[str, Any],
        zero: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> tuple[Any, Any]:
        """Return DeepSpeed's engine and its optimizer around AdamW's."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # On CPU, DeepSpeed would compile a shared-memory all-reduce at first use: 20 s, and it needs a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        half = dtype != torch.float32
        config = {
            **ds_config,
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": 1,
            # Any number above 1: step() ends the accumulation, and losses are not scaled by it.
            "gradient_accumulation_steps": 2,
            "gradient_clipping": optimizer.max_grad_norm,
            "bf16": {"enabled": dtype == torch.bfloat16 and not self.masters},
            "fp16": {"enabled": dtype == torch.float16 and not self.masters, "loss_scale": 1.0},  # not DeepSpeed's
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW needs no compiler on the user's machine
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 60,
        }
        if half and not self.masters:
            config["data_types"] = {"grad_accum_dtype": "fp32", **ds_config.get("data_types", {})}
            # By default DeepSpeed rounds float32 sums to bfloat16 before it reduces them over ranks.
            config.setdefault("communication_data_type", "fp32")
        if config["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
            raise UserError("--dtype is float16, which DeepSpeed refuses here with ZeRO or several ranks: give float32")
        engine, wrapped, _, _ = deepspeed.initialize(
            model=stepped, optimizer=torch_adamw, config=config, dist_init_required=False
        )
        if self.world.size == 1 and self.stage == 0:
            engine.enable_backward_allreduce = False  # for one rank it only copies all gradients and back
        return engine, wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs) if self.masters else self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool, veto: Tensor | None = None) -> None:
        """Accumulate the gradient of one microbatch's share of the loss; the `last` one of a step reduces it.

        Where `veto` (bool scalar on the device) is true, the step will change nothing and its norm will not be finite:
        the host need not read it before.
        """
        # Times 1 changes no bit. A loss that is not finite is multiplied by NaN, so that the sum over ranks shows it.
        is_good = loss.detach().isfinite() if veto is None else loss.detach().isfinite() & ~veto
        factor = torch.where(is_good, 1.0, math.nan) * self.world.size
        if self.scale:
            self.scale.saw(is_good)
            if self.masters:
                factor = factor * self.scale.value
            else:
                self.optimizer.loss_scaler.cur_scale = self.scale.value  # DeepSpeed multiplies and divides
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * factor, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip, update, clear. Returns the gradient norm before clipping; if it is not finite, nothing was updated.

        A loss or gradient that is not finite on one rank makes the norm not finite on all. This is an error, except
        where `overflowed` is true afterwards: then the same losses must be passed once more, with a smaller loss scale.
        """
        norm = self._step(lr)
        self.overflowed = self.scale is not None and self.scale.overflowed(norm)
        return norm

    @property
    def numbers(self) -> dict[str, float]:
        """The loss scale to log, if there is one."""
        return {"loss_scale": self.scale.value} if self.scale else {}

    def _step(self, lr: float) -> float:
        """Clip, update, clear; returns the norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.apart_lr if group[APART] and self.apart_lr is not None else lr
        if self.stage:
            self.engine.step()  # with a norm that is not finite it changes nothing and reports inf
            return float(self.engine.get_global_grad_norm())
        # In stage 0 DeepSpeed clips, but keeps no norm and checks nothing. AdamW's fused kernel skips the update on the
        # device if found_inf is 1, so the host does not wait.
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if self.scale:
            torch._foreach_mul_(gradients, 1 / self.scale.value)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        self.optimizer.found_inf = norm.isfinite().logical_not().float()
        self.engine.step()
        if self.masters:
            self.masters.write()
        return float(norm)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all parameters of the module on the CPU, gathered one at a time; the same on every rank."""
        state = {}
        for name, parameter in self.module.named_parameters():
            with self.state.gathered(parameter):
                state[name] = parameter.detach().cpu().clone()
        return state

    def weights(self, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Return the trained weights as the module reads them, in the first rank's host memory; {} on others.

        Leaves out names that begin with a prefix in `but`. All ranks call it.
        """
        kept = {}
        for name, parameter in self.trained.items():
            if but and name.startswith(but):
                continue
            with self.state.gathered(parameter):
                if self.world.is_first:
                    kept[name] = parameter.detach().to("cpu", copy=True).contiguous()
        return kept

    @torch.no_grad()
    def show(self, names: Sequence[str], read: Callable[[str], Tensor]) -> None:
        """Put weights that `weights` returned into the module, to measure and export them. All ranks call it.

        `read` is called on the first rank only. Masters and moments stay, and `keep` returns those of the last step; no
        step may follow.
        """
        for name, parameter in self.trained.items():
            if name not in names:
                continue
            self.state.set_aside(parameter)
            value = read(name).to(self.world.device, parameter.dtype) if self.world.is_first else None
            if value is None:
                value = torch.empty(shape_of(parameter), dtype=parameter.dtype, device=self.world.device)
            value = self.world.broadcast(value.contiguous())
            with self.state.gathered(parameter, modifier_rank=0):
                parameter.data.copy_(value)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @property
    def kept_bytes(self) -> int:
        """Size in bytes of what `keep` returns."""
        return sum(shape_of(p).numel() * 4 * (1 + len(MOMENTS)) for p in self.trained.values())

    def keep(self) -> dict[str, Tensor]:
        """Return all that the next step depends on, in the first rank's host memory; {} on others. All ranks call it.

        `weight:NAME`, `exp_avg:NAME`, `exp_avg_sq:NAME`: float32, shaped as the parameter; `step`: the optimizer's. In
        stage 0, a parameter that never had a gradient has no moments.
        """
        kept = {}
        for name, parameter in self.trained.items():
            for key in (WEIGHT, *MOMENTS):
                whole = self.state.whole(parameter, key)
                if whole is not None and self.world.is_first:
                    kept[f"{key}:{name}"] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
        if self.world.is_first:
            kept["step"] = torch.tensor(self.state.steps_taken())
            if self.scale:
                kept[SCALE] = self.scale.state()
        return kept

    def put_back(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> None:
        """Restore what `keep` returned, in any stage and on any number of ranks. All ranks call it.

        `shapes` names the tensors; `read` is called on the first rank only, for one tensor at a time. UserError if the
        parameters are not those trained here.
        """
        here = {f"{WEIGHT}:{name}": tuple(shape_of(p)) for name, p in self.trained.items()}
        there = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(f"{WEIGHT}:")}
        if here != there:
            odd = min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            raise UserError(
                f"the checkpoint does not fit what is trained here, first {odd}: {there.get(odd)} there, "
                f"{here.get(odd)} here: give the settings it was made with"
            )

        def whole(key: str, shape: tuple[int, ...]) -> Tensor:
            value = read(key).to(self.world.device) if self.world.is_first else None
            return self.world.broadcast(torch.empty(shape, device=self.world.device) if value is None else value)

        if self.scale and SCALE in shapes:
            self.scale.restore(whole(SCALE, tuple(shapes[SCALE])))
        step = whole("step", ())
        self.state.start_partitions(step)
        for name, parameter in self.trained.items():
            for key in (WEIGHT, *MOMENTS):
                if f"{key}:{name}" in shapes:
                    self.state.write(parameter, key, whole(f"{key}:{name}", tuple(shape_of(parameter))), step)
        if self.masters:
            self.masters.write()
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
