"""`python launch/STAGE.py --replay FILE`: rerun forward and backward of the batch that stopped a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from engine.base.errors import UserError
from engine.base.seeds import derive_seed
from engine.cli.console import Console
from engine.distributed.world import start_world
from engine.run.checkpoint_files import TRAINED, Checkpoint
from engine.settings import STAGE_SETTINGS, BatchSettings, RunSettings, TrunkSettings, parse_rewards, split_of
from engine.training.guards import read_kept
from engine.training.modules import LanguageModule, Policy, RewardModule
from engine.training.pretrain import pretraining_module
from engine.training.replay import Replayed, bad_weights, groups_of, replay
from engine.training.sft import sft_module
from engine.training.weighted_scorers import load_rewards, start_critic
from launch.common import choose_dtype, load_checked

# The base model of a stage without --model.
EMBEDDED = {"pretrain": "init", "sft": "init", "reward": "sft/model", "dpo": "sft/model", "ppo": "sft/model"}
SHOWN_GRADIENTS = 12


def replay_asked(stage: str, argv: Sequence[str]) -> bool:
    """Return whether the command line asks for a replay, after running and printing it."""
    words = [word for word in argv if not re.fullmatch(r"--local[_-]rank=\d+", word)]
    if not any(word.split("=")[0] == "--replay" for word in words):
        return False
    match words:
        case ["--replay", file]:
            pass
        case [word] if word.startswith("--replay="):
            file = word.removeprefix("--replay=")
        case _:
            raise UserError(
                f"--replay takes a file and no other flag, the settings are in it: not {' '.join(words):.80}"
            )
    show(stage, Path(file))
    return True


def show(stage: str, file: Path) -> None:
    """Read the file, run its batch and print the table and the verdict."""
    note, tensors = read_kept(file)
    if note["stage"] != stage:
        raise UserError(f"{file} was written by launch/{note['stage']}.py: give it to that launcher")
    run_class, _, batch_class, own_class = STAGE_SETTINGS[stage]  # the optimizer is not run
    run, batch, own = (_settings(cls, note["settings"], file) for cls in (run_class, batch_class, own_class))
    world = start_world()
    console = Console(world.is_first)
    if not world.is_first:
        return
    groups = groups_of(stage, note["ids"], tensors, own)
    model_dir = run.model or Path(run.runs, run.lang, EMBEDDED[stage])
    trunk = own if isinstance(own, TrunkSettings) else None
    dtype = choose_dtype(run.dtype, world.device, console.say)
    model, tokenizer = load_checked(model_dir, dtype, world.device, trunk)
    checkpoint = _checkpoint_of(note, file)
    module, split = _module(stage, model, tokenizer, run, batch, own)
    module.to(world.device)
    if checkpoint is not None:
        _load(module, checkpoint)
    console.header(f"Replay of step {note['step']}, rank {note['rank']}, where {note['quantity']} was not finite", {
        "batch": f"{file} ({len(note['ids'])} sequences)",
        "model": model_dir,
        "weights": checkpoint.path if checkpoint else "the initial ones",
    })  # fmt: skip
    if bad := bad_weights(model, module):
        console.say(f"  {len(bad)} weights are not finite before the replay: {', '.join(bad[:5])}")
    results = list(replay(model, module, split, groups))
    _table(console, results)
    _verdict(console, results)


def _table(console: Console, results: Sequence[Replayed]) -> None:
    """Print the largest magnitudes per record, all layers in one column."""
    layers = ("embedding", "layer", "final")
    names = [name for name in results[0].sizes if not name.startswith(layers)]
    kept = [name for name in names if name.startswith("kept")]
    head = ["record", "tokens", *(["kept"] if kept else []), "layers", *(n for n in names if n not in kept)]
    rows = []
    for r in results:
        inner = torch.tensor([size for name, size in r.sizes.items() if name.startswith(layers)])
        cells = [_short(torch.tensor([r.sizes[name] for name in kept]))] if kept else []
        cells += [_short(inner), *(f"{r.sizes[n]:.4g}" for n in names if n not in kept)]
        gradient = _short(torch.tensor([*r.gradients.values(), 0.0]))
        rows.append([_ids(r)[:24], str(r.tokens), *cells, gradient, r.first_bad or "-"])
    console.say()
    console.table([*head, "gradient", "first not finite"], rows)
    console.say("  largest magnitudes; losses per sequence, not divided by the batch")


def _verdict(console: Console, results: Sequence[Replayed]) -> None:
    bad = [r for r in results if r.first_bad]
    if not bad:
        largest = sorted(((size, name) for r in results for name, size in r.gradients.items()), reverse=True)
        console.say(
            "\n  all is finite here, so the bad value came from another rank or the sum: replay the other files, too"
        )
        console.say(f"  largest gradients: {', '.join(f'{name} {size:.3g}' for size, name in largest[:5])}")
        return
    for r in bad[:5]:
        console.say(f"\n  {_ids(r)}: {r.first_bad} is the first value that is not finite")
        reached = [f"{name} {size:.3g}" for name, size in r.gradients.items() if not abs(size) < float("inf")]
        more = f", and {len(reached) - SHOWN_GRADIENTS} more" if len(reached) > SHOWN_GRADIENTS else ""
        if reached:
            console.say(f"  gradients in backward order: {', '.join(reached[:SHOWN_GRADIENTS])}{more}")


def _ids(result: Replayed) -> str:
    return ", ".join(dict.fromkeys(result.ids))


def _short(sizes: torch.Tensor) -> str:
    return f"{float(sizes.max()):.4g}"


def _settings(cls: type, values: dict[str, Any], file: Path) -> Any:
    fields = {f.name for f in dataclasses.fields(cls)}
    try:
        return cls(**{name: value for name, value in values.items() if name in fields})
    except (TypeError, AttributeError) as error:
        raise UserError(f"{file} contains invalid settings ({error}): give a file as the run wrote it") from error


def _checkpoint_of(note: dict[str, Any], file: Path) -> Checkpoint | None:
    """Return the checkpoint with the weights before the step, or None for the initial weights of the run."""
    name = note.get("checkpoint")
    if name is None:
        if note["step"] > 1:
            raise UserError(
                f"{file}: the weights of step {note['step'] - 1} were not saved, so nothing can be replayed"
            )
        return None
    path = file.absolute().parent.parent / "checkpoints" / str(name)
    if not re.fullmatch(r"step-\d{6,18}", str(name)) or not (path / TRAINED).is_file():
        raise UserError(f"{path} is gone, and {file} needs its weights: replay before the run goes on")
    return Checkpoint(path, {})


def _module(
    stage: str, model: nn.Module, tokenizer: Any, run: RunSettings, batch: BatchSettings, own: Any
) -> tuple[nn.Module, int | None]:
    """Return the module that the stage trains, as its trainer builds it, and the index of the first trained layer."""
    if stage == "reward":
        split = max(0, model.num_layers - own.num_top_layers)
        score_weight_D = RewardModule.new_score_weight(model, derive_seed(run.seed, "score head"))
        return RewardModule(model, score_weight_D, split), split
    if stage == "pretrain":
        return pretraining_module(model, own)
    if stage == "sft":
        return sft_module(model, own, run.seed)
    split = split_of(own.top_layers, model.num_layers)
    if stage == "dpo":
        return LanguageModule(model, split), split
    policy = Policy(model, split, own.has_critic)
    if own.critic == "separate":
        rewards = own.rewards or parse_rewards([str(Path(run.runs, run.lang, "reward", "model"))])
        start_critic(policy, load_rewards(rewards, model, split, tokenizer, batch.tokens_per_microbatch))
    return policy, split


@torch.no_grad()
def _load(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into the trained parameters."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    try:
        with checkpoint.open(TRAINED) as handle:
            kept = {k.removeprefix("weight:"): k for k in handle.keys() if k.startswith("weight:")}  # noqa: SIM118
            shapes = {name: tuple(handle.get_slice(key).get_shape()) for name, key in kept.items()}
            if shapes != {name: tuple(p.shape) for name, p in trained.items()}:
                raise UserError(f"{checkpoint.path} has other weights than this stage trains: was the model replaced?")
            for name, key in kept.items():
                trained[name].copy_(handle.get_tensor(key))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{checkpoint.path} cannot be read ({error}): the replay needs its weights") from error
