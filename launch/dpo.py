"""Train on rankings without a reward model: `deepspeed launch/dpo.py --lang ne --model DIR --data RANKINGS`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.parse import Parsed, main
from engine.run.kept import in_words
from engine.run.model_card import write_card
from engine.settings import BatchSettings, DPOSettings, OptimizerSettings, RunSettings, split_of
from engine.training.dpo import DPOTrainer
from engine.training.export import save_trained
from engine.training.heldout import as_share, shown
from launch.common import Job, finished_before, open_job, parse_stage
from launch.rankings import estimate_of, read_inputs
from launch.replay import replay_asked

SHOWN = {
    "held-out loss, before -> after": "heldout_loss",
    "held-out pairs in the right order by the implicit reward": "accuracy",
    "held-out pairs whose better answer is likelier": "likelier",
}
SHARES = ("accuracy", "likelier")


def job(argv: Sequence[str]) -> None:
    """Train a policy on rankings, by default the embedded SFT model on the embedded ones."""
    if replay_asked("dpo", argv):
        return
    run(parse_stage("dpo", argv, "Direct preference optimisation"))


def run(settings: Parsed) -> None:
    """Train unless the run is complete, and print its result."""
    run_settings, optimizer, batch, dpo = settings
    job = open_job("dpo", settings)
    if not finished_before(job):
        train(job, run_settings, optimizer, batch, dpo)
    show(job)


def train(
    job: Job, run_settings: RunSettings, optimizer: OptimizerSettings, batch: BatchSettings, dpo: DPOSettings
) -> None:
    """Check all inputs, then train, save and evaluate."""
    dpo.check_heldout_of(run_settings.data, run_settings.eval_data)
    read = read_inputs(job, run_settings, batch, dpo)
    model, tokenizer = read.model, read.tokenizer
    split = split_of(dpo.top_layers, model.num_layers)
    disk = read.disk(job, split, read.mixture.passes(read.batch.epochs) + 1, columns=1)
    exported = job.try_export(model, read.names, tokenizer, read.choice.template, read.eos_ids)
    job.run.start()
    context = job.context(run_settings, optimizer, read.batch, dpo, read.mixture)
    trainer = DPOTrainer(model, read.rankings, read.heldout, context)
    rows = read.header("all" if split is None else f"top {dpo.top_layers}", disk, trainer.steps)
    rows["loss"] = f"{dpo.dpo_loss}, beta {dpo.beta:g}"
    job.header(f"DPO in {job.language.name}", rows, len(trainer.steps))
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            save_trained(trainer.zero, model, job.run.model_dir, exported, job.world, read.eos_ids)
        if job.world.is_first:
            write_card(job.run.model_dir, "dpo", job.card_settings, read.names, result, tokenizer, read.eos_ids)
        job.run.finish(result)


def show(job: Job) -> None:
    """Print the result as a short table."""
    result = job.run.result
    rows = [["DPO loss, first -> last step", f"{result['loss_first']:.3f} -> {result['loss_last']:.3f}"]]
    for title, name in SHOWN.items():
        if name in result:
            sides = [estimate_of(result, name, when) for when in ("_before", "")]
            rows.append([title, " -> ".join(as_share(x) if name in SHARES else shown(name, x) for x in sides)])
    job.console.say()
    job.console.table(["direct preference optimisation", f"{result['seconds']:.0f} s"], rows)
    if "kept" in result:
        job.console.say(f"  {in_words(result['kept'])}")
    job.console.say(f"  model: {job.run.model_dir}   curves: {job.curves}")


if __name__ == "__main__":
    main(job)
