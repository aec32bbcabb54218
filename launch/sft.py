"""Supervised fine-tuning: `deepspeed launch/sft.py --lang ne --model DIR --data FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.mixture import Source, names_of
from engine.base.records import read_instructions
from engine.cli.parse import Parsed, main
from engine.planning.disk import kept_tokens, num_trained
from engine.run.kept import in_words
from engine.run.model_card import write_card
from engine.run.template_choice import check_template
from engine.settings import BatchSettings, OptimizerSettings, RunSettings, SFTSettings, split_of
from engine.text.encoding import encode_instructions, encode_prompts
from engine.text.eos import eos_ids_of
from engine.training.exact_match import exact_match
from engine.training.export import save_trained
from engine.training.lora import num_factors
from engine.training.sft import SFTTrainer
from launch.common import (
    Job,
    check_files,
    checked_reader,
    embedded_data,
    embedded_model,
    finished_before,
    open_job,
    parse_stage,
    say_overlap,
)
from launch.lengths import fit_job
from launch.replay import replay_asked
from launch.sources import encode_sources, read_sources


def job(argv: Sequence[str]) -> None:
    """Fine-tune a model on instructions, by default the embedded model on the embedded data."""
    if replay_asked("sft", argv):
        return
    run(parse_stage("sft", argv, "Packed supervised fine-tuning"))


def run(settings: Parsed) -> None:
    """Train unless the run is complete, and print its result."""
    run_settings, optimizer, batch, sft = settings
    job = open_job("sft", settings)
    if not finished_before(job):
        train(job, run_settings, optimizer, batch, sft)
    show(job)


def train(
    job: Job, run_settings: RunSettings, optimizer: OptimizerSettings, batch: BatchSettings, sft: SFTSettings
) -> None:
    """Check all inputs, then train, save and evaluate."""
    check_template(batch.template)
    has_heldout = run_settings.eval_data is not None or not run_settings.sources
    sft.check_heldout(has_heldout, "--eval-data")
    sources, checks_file = run_settings.sources, run_settings.eval_data
    read = checked_reader(job, batch, read_instructions)
    if run_settings.model is None:
        check_files(read, *(source.path for source in sources), checks_file)
    if not sources:
        embedded = embedded_data(run_settings, job)
        sources, checks_file = (Source(str(embedded / "sft.jsonl")),), checks_file or embedded / "heldout.jsonl"
    model_dir = run_settings.model or embedded_model(run_settings, job)
    (batch,) = fit_job(job, model_dir, batch)
    model, tokenizer = job.load(model_dir, sft)
    eos_ids = eos_ids_of(model_dir, tokenizer, model.vocab_size)
    choice = job.choose_template(batch.template, model_dir, tokenizer)
    parts, heldout_records = read_sources(read, sources), read(checks_file) if checks_file else []
    say_overlap(job.console, [record for part in parts for record in part], heldout_records)
    encode = {"tokenizer": tokenizer, "template": choice.template, "truncate": batch.truncate}
    examples, mixture = encode_sources(
        sources, parts, lambda part: encode_instructions(part, max_length=batch.max_length, eos_ids=eos_ids, **encode)
    )
    heldout, checks = [], []
    if heldout_records:
        heldout = encode_instructions(heldout_records, max_length=batch.max_length, eos_ids=eos_ids, **encode)
    if heldout_records and sft.exact_match:
        room = batch.max_length - 1  # for one answer token
        checks = encode_prompts(heldout_records, max_prompt_length=room, **encode)

    split, lengths = split_of(sft.top_layers, model.num_layers), [len(e.tokens) for e in examples]
    kept = 0 if split is None else kept_tokens(lengths, model, mixture.passes(batch.epochs), batch.trunk_cache)
    trained = num_factors(model, split, sft.lora_rank) if sft.lora_rank else num_trained(model, split)
    disk = job.disk(len(examples), batch, model, trained, kept_tokens=kept)
    inputs = {"base model": model_dir, "data": names_of(sources)}
    exported = job.try_export(model, inputs, tokenizer, choice.template, eos_ids)
    job.run.start()
    trainer = SFTTrainer(model, examples, heldout, job.context(run_settings, optimizer, batch, sft, mixture))
    job.header(f"Supervised fine-tuning in {job.language.name}", {
        "model": f"{model_dir} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        "data": f"{names_of(sources)} ({len(examples):,} sequences, {sum(lengths):,} tokens)",
        **mixture.rows(trainer.steps),
        "template": choice.shown,
        "plan": f"{len(trainer.steps)} steps of {len(trainer.steps[0])} sequences, loss on {sft.loss_on}",
        "held out": f"{checks_file} ({len(heldout):,} sequences)" if heldout else "nothing, --eval-data names a file",
        "disk": disk,
    }, len(trainer.steps))  # fmt: skip
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            save_trained(trainer.zero, model, job.run.model_dir, exported, job.world, eos_ids)
        if checks:
            trained, _ = job.load(job.run.model_dir)
            longest = max(1, *(len(e.tokens) - e.prompt_len for e in examples))
            result["exact_match"], answers = exact_match(
                trained, tokenizer, eos_ids, checks, longest, job.world, job.console, checkpoints=trainer.checkpoints
            )
            job.run.sample(len(trainer.steps), [
                {"prompt": p.text, "response": a, "expected": p.output} for p, a in zip(checks[:20], answers)
            ])  # fmt: skip
        if job.world.is_first:
            write_card(job.run.model_dir, "sft", job.card_settings, inputs, result, tokenizer, eos_ids)
        job.run.finish(result)


def show(job: Job) -> None:
    """Print the result as a short table."""
    result = job.run.result
    rows = [["SFT loss, first -> last step", f"{result['loss_first']:.3f} -> {result['loss_last']:.3f}"]]
    if {"heldout_loss_before", "heldout_loss"} <= result.keys():
        before, after = result["heldout_loss_before"], result["heldout_loss"]
        rows.append(["loss on held-out data, before -> after", f"{before:.3f} -> {after:.3f}"])
    if "exact_match" in result:
        rows.append(["exact match on held-out tasks", f"{result['exact_match']:.1%}"])
    job.console.say()
    job.console.table(["supervised fine-tuning", f"{result['seconds']:.0f} s"], rows)
    if "kept" in result:
        job.console.say(f"  {in_words(result['kept'])}")
    job.console.say(f"  model: {job.run.model_dir}   curves: {job.curves}")


if __name__ == "__main__":
    main(job)
