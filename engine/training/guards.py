"""Stop a run whose numbers are not finite: keep the batch in a file, save the last good weights, print one line.

`ZeroStep.step` skips the update when the gradient is not finite, and every rank sees it in the norm it reads anyway;
this file does the rest. A kept batch is a safetensors file with a note as JSON in its header. Shapes: T tokens, S
sequences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.base.errors import UserError
from engine.objectives.experience import Experience
from engine.packing import Microbatch
from engine.run.folder import Run
from engine.training.checkpoint import Checkpoints
from engine.training.modules import Policy
from engine.training.ppo_progress import Progress

FOLDER, NOTE = "not_finite", "note"
STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
FIELDS = {"stage": str, "step": int, "rank": int, "quantity": str, "settings": dict, "ids": list}
# The columns of a rollout, causes first: if one is not finite, the later ones are not, either.
COLUMNS = ("score_S", "logprob_T", "ref_logprob_T", "value_T", "reward_T", "return_T", "advantage_T")


@dataclass(frozen=True)
class Trouble:
    """A quantity of a rank's batch that is not finite, and its records. Causes have a lower order than effects."""

    order: int
    quantity: str
    ids: tuple[str, ...]


def in_losses(losses: Sequence[Tensor], ids: Sequence[Sequence[str]], order: int = 0) -> Trouble | None:
    """Find microbatch losses (scalars) that are not finite; `ids` are the records of each microbatch."""
    found = [name for loss, names in zip(losses, ids) if not bool(loss.isfinite()) for name in names]
    return Trouble(order, "the loss", tuple(found)) if found else None


def in_rollouts(x: Experience, ids: Sequence[str]) -> Trouble | None:
    """Find the first column of the rollouts that is not finite; `ids` are the prompts' records, one per sequence."""
    for order, name in enumerate(COLUMNS):
        if (column := getattr(x, name)) is None:
            continue
        bad = ~column.isfinite()
        if name.endswith("_T"):
            acted = (bad & x.action_T).float()
            bad = torch.zeros(x.batch.num_sequences, device=acted.device).index_add(0, x.batch.sequence_T, acted) > 0
        if found := bad.nonzero()[:, 0].tolist():
            return Trouble(order, f"{name.rpartition('_')[0]} of a rollout", tuple(ids[s] for s in found))
    return None


def stop(
    run: Run,
    checkpoints: Checkpoints,
    steps_done: int,
    trouble: Trouble | None,
    ids: Sequence[str],
    tensors: Mapping[str, Tensor],
    trainer: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    experience: Experience | None = None,
) -> NoReturn:
    """End the run before a step with numbers that are not finite. All ranks call it and raise the same UserError.

    `trouble` is what this rank found, None if only the gradient or another rank shows it; `ids` and `tensors` are the
    records and the batch of this rank; `trainer` and `experience` as in `Checkpoints.save`.
    """
    world, step = run.world, steps_done + 1
    found = [(t.order, rank, t) for rank, t in enumerate(world.gather(trouble)) if t]
    rank, first = min(found, key=lambda x: x[:2])[1:] if found else (0, Trouble(len(COLUMNS) + 1, "the gradient", ()))
    try:
        saved = checkpoints.save(steps_done, trainer, experience)
        kept = f"the weights of step {steps_done} are saved in {saved}" if saved else "no step was taken yet"
    except UserError as error:
        saved, kept = None, f"the weights of step {steps_done} are not saved ({error})"
    note = {
        "stage": run.stage, "step": step, "rank": world.rank, "ranks": world.size, "quantity": first.quantity,
        "settings": run.settings, "versions": run.provenance["versions"], "checkpoint": saved and saved.name,
        "ids": list(ids),
    }  # fmt: skip
    problems = world.gather(keep(file_of(run.path, step, world.rank), note, tensors))
    file = file_of(run.path, step, rank)
    if problems[rank]:
        look = f"its batch could not be kept in {file} ({problems[rank]})"
    else:
        look = f"`python launch/{run.stage}.py --replay {file}` shows in its batch where that begins"
    half = "give --dtype float32 (float16 ends at 65,504), " if checkpoints.zero.scale else ""
    which = f" (record {', '.join(first.ids[:4])}{', ...' if len(first.ids) > 4 else ''})" if first.ids else ""
    raise UserError(
        f"step {step}: {first.quantity} is not finite on rank {rank}{which}; the step was not taken and {kept}; "
        f"{look}; then fix the data, {half}or lower --lr" + (" and go on with --resume --override" if saved else "")
    )


def stop_ppo(
    run: Run,
    checkpoints: Checkpoints,
    progress: Progress,
    policy: Policy,
    kl_coef: float,
    state: Callable[[], Mapping[str, Any]],
    x: Experience,
    ids: Sequence[str],
    mine: Sequence[int],
    plan: Sequence[Microbatch],
    losses: Sequence[Tensor],
    files_before: Mapping[str, int],
    of_text: Sequence[Tensor] = (),
) -> NoReturn:
    """End a PPO run at an update that was not made, as `stop` does. All ranks call it.

    `x` are this rank's rollouts and `ids` their records, `mine` the sequences of the update, `plan` and `losses` its
    microbatches, `of_text` the losses of pretraining text. Rollouts that are not finite are dropped, with what was
    logged of them since `files_before`: the resumed run makes them again.
    """
    trouble = in_rollouts(x, ids)
    if run.world.max(trouble is not None):
        run.cut_back(files_before, run.position()["seconds"])
        progress.dropped()
    trouble = trouble or in_losses(losses, [[ids[s] for s in part.indices] for part in plan], len(COLUMNS))
    if not trouble and not all(bool(loss.isfinite()) for loss in of_text):
        trouble = Trouble(len(COLUMNS), "the loss of the pretraining text", ())
    # One bad rollout makes all advantages bad: keep them all.
    chosen = range(len(ids)) if progress.experience is None else mine or [0]
    numbers = {"kl_coef": kl_coef} | ({"value_offset": policy.value_offset} if policy.value is not None else {})
    kept = {**x.select(chosen).tensors(), **{name: torch.tensor(number) for name, number in numbers.items()}}
    if not math.isfinite(policy.value_offset):  # it came from the dropped rollouts; the next ones give another
        policy.value_offset = 0.0
    stop(run, checkpoints, progress.step, trouble, [ids[s] for s in chosen], kept, state, progress.experience)


def file_of(run_path: Path, step: int, rank: int) -> Path:
    return run_path / FOLDER / f"step-{step:06d}-rank-{rank}.safetensors"


def keep(file: Path, note: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Write a batch. Returns why that failed, or None."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, file, {NOTE: json.dumps(note)})
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or " ".join(str(error).split())
    return None


def read_kept(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the note and the tensors of a kept batch. UserError if the file is not one."""
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            note = json.loads((handle.metadata() or {}).get(NOTE, "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (a handle is no mapping)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--replay {file} cannot be read ({why}): give a file of a run's {FOLDER} folder") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--replay {file} holds a damaged note: give a file of a run's {FOLDER} folder") from error
    wrong = not isinstance(note, dict) or any(not isinstance(note.get(name), kind) for name, kind in FIELDS.items())
    if wrong or note["stage"] not in STAGES or not _fits(tensors):
        raise UserError(f"--replay {file} is not a batch that a run has kept: give a file of a run's {FOLDER} folder")
    return note, tensors


def _fits(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether there are tokens, and sequence lengths of at least 1 that add up to them."""
    tokens_T, lengths_S = tensors.get("tokens_T"), tensors.get("lengths_S")
    if tokens_T is None or lengths_S is None or {tokens_T.dtype, lengths_S.dtype} != {torch.int64}:
        return False
    lengths = lengths_S.flatten().tolist()
    return bool(lengths) and min(lengths) > 0 and sum(lengths) == tokens_T.numel()
