"""Stage 5: PPO at 7B in this process, against the plan of engine/planning, whole and within less memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from engine.cli.console import Console
from engine.device import be_deterministic
from engine.distributed.world import start_world
from engine.generation.kv_cache import PAGE_SIZE
from engine.models.quantised import quantise_trunk
from engine.planning.memory import Workload, memory, peaks, phases, within_budget
from engine.run.folder import Run
from engine.settings import split_of
from launch.gpu import tiny
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Expected, Measured, Spread, times_floor, within
from launch.gpu.models import dtype, label, on_meta, random_model, shape

ITERATIONS = 3
FAMILY = "llama"
ROOM = 0.92  # of a limit may be planned: the allocator's blocks do not fill all of it
PHASES = ("generation", "scoring", "update")


@dataclass(frozen=True)
class Choice:
    """A way to run PPO: the frozen trunk, trained layers, rollouts at once, tokens a forward, rollouts an iteration."""

    trunk: str = "model"
    top: int = 4
    slots: int = 128
    tokens: int = 8192
    rollouts: int = 128

    def __str__(self) -> str:
        bits = "" if self.trunk == "model" else f", {self.trunk} trunk"
        return f"{self.rollouts} rollouts, {self.slots} at once, top {self.top}{bits}, {self.tokens:,} tokens a forward"


# In the order of preference: the first that fits is run, with less memory than the GPU has one with a quantised trunk.
WHOLE = (Choice(), Choice(tokens=4096), Choice(slots=64, tokens=4096), Choice(slots=32, tokens=2048))
QUANTISED = (
    Choice("int8", slots=64, tokens=4096), Choice("int8", slots=32, tokens=2048), Choice("int8", 2, 32, 2048),
    Choice("int8", 2, 16, 1024, 64), Choice("int4", 2, 16, 1024, 64), Choice("int4", 1, 8, 512, 32),
)  # fmt: skip


def cases(lab: Lab) -> list[Case]:
    """Return cases for the whole GPU, for 40 and for 24 GB of it, and one with --deterministic, to see what it costs.

    Each has a process of its own.
    """
    total = lab.pick(torch.cuda.mem_get_info()[1] / 1e9 if torch.cuda.is_available() else 0.0, 0.0)
    limits = [None, *(gb for gb in (40, 24) if gb < total)] if not lab.fake else [None, 24]
    return [*(_case(lab, limit, total) for limit in limits), _case(lab, None, total, deterministic=True)]


def _case(lab: Lab, limit_gb: int | None, total_gb: float, deterministic: bool = False) -> Case:
    """Return the case of the first choice that fits, with the plan's numbers as predictions."""
    model = on_meta(lab, FAMILY)
    room = ROOM * 1e9 * (limit_gb or total_gb)
    device_bytes = 1e9 * (limit_gb or total_gb or 1e3)
    choice = _tiny(limit_gb) if lab.fake else None
    for one in QUANTISED if limit_gb else (*WHOLE, *QUANTISED):
        if choice is None and max(peaks(memory(model, plan(lab, one, model, device_bytes)))) <= room:
            choice = one
    name = f"{label(lab, FAMILY)}, {ITERATIONS} iterations" + (f" within {limit_gb} GB" if limit_gb else "")
    name += ", deterministic" if deterministic else ""
    if choice is None:
        return Case(f"{name}: nothing fits", [], lambda: Measured({}), memory_gb=float("inf"))
    w = plan(lab, choice, model, device_bytes)
    rollout, update = (bytes_ / 1e9 for bytes_ in peaks(memory(model, w)))
    floors = _floors(lab, model, w)
    lines = [Expected(f"{phase} of an iteration", "s", floors[phase], times_floor(1.5)) for phase in PHASES]
    lines += [
        Expected("peak allocated while generating", "GB", rollout, within(0.10)),
        Expected("peak allocated while updating", "GB", update, within(0.10)),
        Expected("peak reserved", "GB", max(rollout, update)),
    ]
    # A run knows the GPU's memory and not our limit: there its cache is given. The spare page is part of it.
    cache_tokens = (w.pages + 1) * PAGE_SIZE if limit_gb else None
    measure = partial(_train, lab, choice, cache_tokens, limit_gb, total_gb, deterministic)
    return Case(f"{name}: {choice}", lines, measure, 90, max(rollout, update), alone=True)


def _tiny(limit_gb: int | None) -> Choice:
    return Choice("int8" if limit_gb else "model", 2, 3, 64, 4)


def _lengths(lab: Lab) -> tuple[int, int]:
    """Return the tokens of a prompt and of a response."""
    return lab.pick((256, 256), (12, 6))


def plan(lab: Lab, choice: Choice, model: Any, device_bytes: float) -> Workload:
    """Return the choice as the planner knows it: a function scores, and the cache is as a run allocates it."""
    prompt, new = _lengths(lab)
    w = Workload(
        "ppo", dtype(lab), 1, 0, False, choice.top, choice.rollouts, choice.slots, prompt, new, choice.tokens,
        shared_trunk=True, separate_critic=False, reward_offload=False, trunk_cache_gb=16.0, ppo_epochs=4, rewards=0,
        minibatch=_minibatch(choice), trunk_dtype=choice.trunk,
    )  # fmt: skip
    return within_budget(model, w, device_bytes)


def _minibatch(choice: Choice) -> int:
    return max(1, choice.rollouts // 4)


def _floors(lab: Lab, model: Any, w: Workload) -> dict[str, float | None]:
    """Return the lower bound of each phase in seconds; prefill and decode are generation."""
    found = {phase.name: lab.floor_s(phase.bytes, phase.flops) for phase in phases(model, w)}
    prefill, decode = found["prefill"], found["decode"]
    generation = None if prefill is None or decode is None else prefill + decode
    return {"generation": generation, "scoring": found["scoring"], "update": found["update"]}


def _train(
    lab: Lab, choice: Choice, cache_tokens: int | None, limit_gb: int | None, total_gb: float, deterministic: bool
) -> Measured:
    """Run the iterations. The first one compiles and captures; the times are those of the others."""
    if deterministic:
        be_deterministic()
    with _limited(lab, limit_gb, total_gb):
        trainer = _trainer(lab, choice, cache_tokens)
        found = [_iterate(lab, trainer, iteration) for iteration in range(ITERATIONS)]

    def spread(read: Callable[[dict[str, Any]], float]) -> Spread:
        return Spread.of([read(one) for one in found[1:]])

    numbers = {f"{phase} of an iteration": spread(lambda one, phase=phase: one[phase]) for phase in PHASES}
    numbers |= {
        f"peak allocated while {when}": spread(lambda one, when=when: one[when]["max_memory_allocated"])
        for when in ("generating", "updating")
    }
    both = ("generating", "updating")
    numbers["peak reserved"] = spread(lambda one: max(one[when]["max_memory_reserved"] for when in both))
    return Measured(numbers, {"choice": str(choice), "iterations": found})


def _iterate(lab: Lab, trainer: Any, iteration: int) -> dict[str, Any]:
    """Run one iteration. Returns its seconds by phase and its memory, while it collects rollouts and after that."""
    found: dict[str, Any] = {}
    own = type(trainer).collect.__get__(trainer)

    def collect(*arguments: Any) -> Any:
        lab.reset_peak()
        made: list[Any] = []
        found["collecting"] = lab.seconds(lambda: made.append(own(*arguments)))
        found["generating"] = lab.memory_gb()
        lab.reset_peak()
        return made[0]

    trainer.collect = collect
    logged: dict[str, float] = {}
    whole = lab.seconds(lambda: logged.update(trainer.iterate(iteration)))
    generation = logged["time/generation_s"]
    seconds = {
        "generation": generation,
        "scoring": found["collecting"] - generation,
        "update": whole - found["collecting"],
    }
    return {**found, **seconds, "updating": lab.memory_gb(), "logged": logged}


@contextmanager
def _limited(lab: Lab, limit_gb: int | None, total_gb: float) -> Iterator[None]:
    """Let this process allocate no more than the limit, as on a smaller GPU."""
    if lab.fake or limit_gb is None:
        yield
        return
    torch.cuda.set_per_process_memory_fraction(limit_gb / total_gb)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _trainer(lab: Lab, choice: Choice, cache_tokens: int | None) -> Any:
    """Return a PPO trainer of random weights made on the device, scored by a function; no weights on disk."""
    from engine.training.context import Context
    from engine.training.ppo import PPOTrainer
    from engine.training.scorers import load_scorer

    prompt, new = _lengths(lab)
    groups = tiny.settings(
        "ppo", lr=1e-6, eps=1e-8, batch_size=choice.rollouts, epochs=1, max_steps=ITERATIONS, max_length=prompt + new,
        tokens_per_microbatch=choice.tokens, top_layers=str(choice.top), max_new_tokens=new,
        minibatch_size=_minibatch(choice), ppo_epochs=4, slots=choice.slots, cache_tokens=cache_tokens,
        trunk_dtype=choice.trunk,
    )  # fmt: skip
    world, vocabulary = start_world(), shape(lab, FAMILY).vocab_size
    folder = lab.folder / "work" / "ppo-7b"
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(folder, "ppo", groups, world)
    run.start()
    model = random_model(lab, FAMILY)
    if choice.trunk != "model":
        quantise_trunk(model, groups[3].quantised_layers(model.num_layers), choice.trunk)
        lab.clean()
    tokenizer, split = tiny.tokenizer_of(vocabulary), split_of(groups[3].top_layers, model.num_layers)
    scorer = load_scorer(groups[3].reward[0], model, split, tokenizer, choice.tokens)
    prompts = tiny.prompts(ITERATIONS * choice.rollouts, [prompt], vocabulary)
    context = Context(*groups, world, run, Console(enabled=False), {})
    return PPOTrainer(
        model, tokenizer, [-1], prompts, scorer, context
    )  # no token ends a response: all have full length
