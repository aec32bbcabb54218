"""Golden traces: ten steps of each trainer in each family, kept as JSON so that a change of any number is seen.

    python -m tests.golden.regenerate

runs the eight traces again, writes them here as STAGE_FAMILY.json, and says for each by how much its numbers moved. Do
this only when a number was meant to change, and say in the commit why it did: test_golden.py compares.

A trace holds what was logged in each of the ten steps (losses, gradient norms and, for PPO, scores, KL, lengths), the
norm of every parameter's gradient in the first step, and a few logits before and after (scores, for a reward model).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.batch import PackedBatch
from tests.engine.training.trainers import (
    FAMILIES,
    logits_of,
    make_trainer,
    one_rank,
    prompts,
    rankings,
    sft_examples,
    train,
)

FOLDER = Path(__file__).parent
TRACES = [(stage, family) for stage in ("sft", "reward", "dpo", "ppo") for family in FAMILIES]
STEPS = 10
DIGITS = 8  # significant, as many as float32 has
PROBE = (5, 17, 42, 8, 8, 31)


def make_trace(stage: str, family: str) -> dict[str, Any]:
    """Train ten tiny steps from fixed weights on fixed data, on the CPU and on one rank."""
    data = {"sft": sft_examples, "reward": rankings, "dpo": rankings, "ppo": prompts}[stage]
    gradients: dict[str, float] = {}
    with one_rank() as world, tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            stage, world, Path(folder) / "run", family=family, data=data(24), epochs=20, max_steps=STEPS
        )
        zero_step = trainer.zero.step

        def step(lr: float) -> float:
            if not gradients:
                named = trainer.zero.module.named_parameters()
                gradients.update({name: float(p.grad.norm()) for name, p in named if p.grad is not None})
            return zero_step(lr)

        trainer.zero.step = step
        before = probe(stage, trainer)
        rows = train(trainer)["rows"]
        trace = {"before": before, "after": probe(stage, trainer), "steps": rows, "first_gradients": gradients}
    return json.loads(json.dumps(trace), parse_float=lambda text: float(f"{float(text):.{DIGITS}g}"))


@torch.no_grad()
def probe(stage: str, trainer: Any) -> list[float]:
    """Eight logits at the end of a fixed sequence, or the scores of three."""
    module = trainer.zero.module
    if stage == "reward":
        batch = PackedBatch.from_sequences([PROBE, PROBE[:2], PROBE[::-1]])
        return module(batch, trainer.trunk(batch)).tolist()
    model = trainer.model
    return logits_of(model, PROBE)[-1, :8].tolist()


def numbers(trace: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(where, number) for every number of a trace."""
    if isinstance(trace, (int, float)):
        yield path, trace
        return
    children = trace.items() if isinstance(trace, dict) else enumerate(trace)
    for key, child in children:
        yield from numbers(child, f"{path}/{key}")


def read_trace(stage: str, family: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{stage}_{family}.json").read_text(encoding="utf-8"))


def moved(new: Any, old: Any) -> str:
    """By how much the numbers of a trace differ, in words."""
    new, old = dict(numbers(new)), dict(numbers(old))
    if new.keys() != old.keys():
        return f"{len(new.keys() ^ old.keys())} numbers are new or gone"
    where = max(new, key=lambda key: abs(new[key] - old[key]))
    return f"largest change {abs(new[where] - old[where]):.1e}, at {where}" if new != old else "unchanged"


def main() -> None:
    for stage, family in TRACES:
        file, trace = FOLDER / f"{stage}_{family}.json", make_trace(stage, family)
        print(f"{file.name}: {moved(trace, read_trace(stage, family)) if file.exists() else 'new'}")
        lines = [json.dumps(key) + ": " + _lines(value) for key, value in trace.items()]
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    """One step, or one parameter, a line."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
    if isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
