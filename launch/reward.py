"""Train a reward model on K-wise rankings: `deepspeed launch/reward.py --lang ne --model DIR --data FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.seeds import derive_seed
from engine.cli.parse import Parsed, main
from engine.run.kept import in_words
from engine.run.model_card import write_card
from engine.settings import BatchSettings, OptimizerSettings, RewardSettings, RunSettings
from engine.training.export import save_trained
from engine.training.heldout import as_share
from engine.training.modules import RewardModule
from engine.training.reward import RewardTrainer
from launch.common import Job, finished_before, open_job, parse_stage
from launch.rankings import estimate_of, read_inputs
from launch.replay import replay_asked


def job(argv: Sequence[str]) -> None:
    """Train a reward model, by default the embedded SFT model on the embedded rankings."""
    if replay_asked("reward", argv):
        return
    run(parse_stage("reward", argv, "K-wise reward model"))


def run(settings: Parsed) -> None:
    """Train unless the run is complete, and print its result."""
    run_settings, optimizer, batch, reward = settings
    job = open_job("reward", settings)
    if not finished_before(job):
        train(job, run_settings, optimizer, batch, reward)
    show(job)


def train(
    job: Job, run_settings: RunSettings, optimizer: OptimizerSettings, batch: BatchSettings, reward: RewardSettings
) -> None:
    """Check all inputs, then train, save and evaluate."""
    reward.check_heldout_of(run_settings.data, run_settings.eval_data)
    read = read_inputs(job, run_settings, batch, reward)
    model, tokenizer, batch = read.model, read.tokenizer, read.batch
    top = min(reward.num_top_layers, model.num_layers)
    disk = read.disk(job, model.num_layers - top, read.mixture.passes(batch.epochs))
    exported = job.try_export(model, read.names, tokenizer, read.choice.template, read.eos_ids)
    job.run.start()
    head_seed = derive_seed(run_settings.seed, "score head")
    score_weight_D = RewardModule.new_score_weight(model, head_seed)
    context = job.context(run_settings, optimizer, batch, reward, read.mixture)
    trainer = RewardTrainer(model, score_weight_D, read.rankings, read.heldout, context)
    rows = read.header(f"top {top}", disk, trainer.steps)
    job.header(f"Reward model in {job.language.name}", rows, len(trainer.steps))
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            moments = result["score_mean"], result["score_std"]
            save_trained(
                trainer.zero, model, job.run.model_dir, exported, job.world, read.eos_ids, score_moments=moments
            )
        if job.world.is_first:
            write_card(job.run.model_dir, "reward", job.card_settings, read.names, result, tokenizer, read.eos_ids)
        job.run.finish(result)


def show(job: Job) -> None:
    """Print the result as a short table."""
    result, rows = job.run.result, []
    if {"accuracy_before", "accuracy"} <= result.keys():
        before, after = (as_share(estimate_of(result, "accuracy", when)) for when in ("_before", ""))
        rows.append(["held-out pairs in the right order, before -> after", f"{before} -> {after}"])
    rows.append(["loss, last step", f"{result['loss_last']:.3f}"])
    job.console.say()
    job.console.table(["reward model", f"{result['seconds']:.0f} s"], rows)
    if "kept" in result:
        job.console.say(f"  {in_words(result['kept'])}")
    job.console.say(f"  model: {job.run.model_dir}   curves: {job.curves}")


if __name__ == "__main__":
    main(job)
