"""Train a reward model on K-wise rankings: `deepspeed launch/reward.py --lang ne --model DIR --data FILE`."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.errors import UserError
from engine.base.records import RankingRecord, read_rankings
from engine.base.seeds import derive_seed
from engine.cli.parse import Parsed, main
from engine.planning.disk import kept_tokens, num_trained
from engine.run.model_card import write_card
from engine.run.template_choice import check_template
from engine.settings import BatchSettings, OptimizerSettings, RewardSettings, RunSettings
from engine.text.encoding import RankedExamples, encode_rankings
from engine.text.eos import eos_ids_of
from engine.training.export import save_trained
from engine.training.modules import RewardModule
from engine.training.rankings import by_prompt
from engine.training.rankings import split as split_prompts
from engine.training.reward import RewardTrainer
from launch import sft
from launch.common import (
    Job,
    check_files,
    checked_reader,
    embedded_data,
    finished_before,
    open_job,
    parse_stage,
    say_overlap,
    stage_model,
)
from launch.lengths import fit_job
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
    check_template(batch.template)
    data, heldout_file = run_settings.data, run_settings.eval_data
    read = checked_reader(job, batch, read_rankings)
    if run_settings.model is None:
        check_files(read, data, heldout_file)
    model_dir = run_settings.model or stage_model(run_settings, "sft", sft.run, job, batch.template)
    if data is None:
        embedded = embedded_data(run_settings, job)
        data, heldout_file = embedded / "ranking.jsonl", heldout_file or embedded / "ranking_heldout.jsonl"
    (batch,) = fit_job(job, model_dir, batch)
    model, tokenizer = job.load(model_dir)
    eos_ids = eos_ids_of(model_dir, tokenizer, model.vocab_size)
    choice = job.choose_template(batch.template, model_dir, tokenizer)

    def grouped(path, records):
        encoded = encode_rankings(records, tokenizer, choice.template, batch.max_length, batch.truncate)
        return grouped_by_prompt(job, path, records, encoded, batch.tokens_per_microbatch)

    records = read(data)
    if heldout_file:
        heldout_records = read(heldout_file)
        say_overlap(job.console, records, heldout_records)
        rankings, heldout = (
            [ranking for members in grouped(path, part).values() for ranking in members]
            for path, part in ((data, records), (heldout_file, heldout_records))
        )
    else:
        rankings, heldout = split_prompts(grouped(data, records), reward.heldout, run_settings.seed, data)
    top = min(reward.num_top_layers, model.num_layers)
    split = model.num_layers - top
    lengths = [len(e.tokens) for r in rankings for e in r.examples]
    kept = kept_tokens(lengths, model, batch.epochs, batch.trunk_cache) if split else 0
    disk = job.disk(len(rankings), batch, model, num_trained(model, split), kept_tokens=kept)
    inputs = {"base model": model_dir, "rankings": data}
    exported = job.try_export(model, inputs, tokenizer, choice.template, eos_ids)
    job.run.start()
    head_seed = derive_seed(run_settings.seed, "score head")
    score_weight_D = RewardModule.new_score_weight(model, head_seed)
    context = job.context(run_settings, optimizer, batch, reward)
    trainer = RewardTrainer(model, score_weight_D, rankings, heldout, context)
    job.header(f"Reward model in {job.language.name}", {
        "model": f"{model_dir} (top {top} of {model.num_layers} layers trained)",
        "data": f"{data} ({len(rankings):,} rankings, {len(lengths):,} responses)",
        "template": choice.shown,
        "held out": f"{len(heldout):,} rankings" if heldout else "nothing",
        "plan": f"{len(trainer.steps)} steps of {len(trainer.steps[0])} rankings",
        "disk": disk,
    }, len(trainer.steps))  # fmt: skip
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            moments = result["score_mean"], result["score_std"]
            save_trained(trainer.zero, model, job.run.model_dir, exported, job.world, eos_ids, score_moments=moments)
        if job.world.is_first:
            write_card(job.run.model_dir, "reward", job.card_settings, inputs, result, tokenizer, eos_ids)
        job.run.finish(result)


def grouped_by_prompt(
    job: Job, path: str, records: Sequence[RankingRecord], encoded: Sequence[RankedExamples], most_tokens: int
) -> dict[Hashable, list[RankedExamples]]:
    """Return {prompt: its rankings}, and print what was merged and dropped.

    UserError if a ranking exceeds most_tokens, since its responses share a microbatch, or if no ranking remains.
    """
    for ranking in encoded:
        if ranking.num_tokens > most_tokens:
            raise UserError(
                f"{path}: the {len(ranking.examples)} responses of ranking {ranking.id} have {ranking.num_tokens} "
                f"tokens in total, --tokens-per-microbatch is {most_tokens}: raise it"
            )
    prompt_of = {record.id: (record.instruction, record.input) for record in records}
    groups, lines = by_prompt(encoded, prompt_of, most_tokens)
    for line in lines:
        job.console.say(f"{path}: {line}")
    if not groups:
        raise UserError(f"{path} has no usable ranking: give responses that differ, or raise --max-length")
    return groups


def show(job: Job) -> None:
    """Print the result as a short table."""
    result, rows = job.run.result, []
    if {"accuracy_before", "accuracy"} <= result.keys():
        before, after = result["accuracy_before"], result["accuracy"]
        rows.append(["held-out pairs in the right order, before -> after", f"{before:.1%} -> {after:.1%}"])
    rows.append(["loss, last step", f"{result['loss_last']:.3f}"])
    job.console.say()
    job.console.table(["reward model", f"{result['seconds']:.0f} s"], rows)
    job.console.say(f"  model: {job.run.model_dir}   curves: tensorboard --logdir {job.run.path / 'tb'}")


if __name__ == "__main__":
    main(job)
