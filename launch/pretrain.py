"""Continue pretraining on text: `deepspeed launch/pretrain.py --lang ne --model DIR --data FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.errors import UserError
from engine.base.mixture import names_of
from engine.cli.parse import Parsed, main
from engine.planning.disk import num_trained
from engine.run.kept import in_words
from engine.run.model_card import write_card
from engine.settings import BatchSettings, PretrainSettings, RunSettings, split_of
from engine.text.eos import eos_ids_of
from engine.training.corpus import Corpus, HeldOutText, names_of_files, tokenise
from engine.training.export import save_trained
from engine.training.pretrain import PretrainTrainer
from launch.common import Job, finished_before, open_job, parse_stage
from launch.lengths import fit_job
from launch.replay import replay_asked

FOR_PROMPTS = ("template", "truncate", "bad_records", "trunk_cache")  # flags that text has no use for


def job(argv: Sequence[str]) -> None:
    """Train a model on text."""
    if replay_asked("pretrain", argv):
        return
    run(parse_stage("pretrain", argv, "Continued pretraining on text"))


def run(settings: Parsed) -> None:
    """Train unless the run is complete, and print its result."""
    run_settings, _, batch, pretrain = settings
    if run_settings.model is None or not run_settings.sources:
        missing = "--model" if run_settings.model is None else "--data"
        raise UserError(f"{missing} is not given: pretraining goes on from a model, on your text; give both")
    if odd := [name for name in FOR_PROMPTS if name in settings.given]:
        raise UserError(f"--{odd[0].replace('_', '-')} is given: it is for prompts and records, leave it out for text")
    if batch.max_length < 3:
        raise UserError(f"--max-length is {batch.max_length}: give 3 or more for text")
    pretrain.check_heldout(bool(run_settings.eval_data), "--eval-data")
    job = open_job("pretrain", settings)
    if not finished_before(job):
        train(job, run_settings, batch, pretrain)
    show(job)


def train(job: Job, run_settings: RunSettings, batch: BatchSettings, pretrain: PretrainSettings) -> None:
    """Check all inputs, tokenise the text, then train, save and measure."""
    model_dir, sources = run_settings.model, run_settings.sources
    (batch,) = fit_job(job, model_dir, batch)
    model, tokenizer = job.load(model_dir)
    eos_ids = eos_ids_of(model_dir, tokenizer, model.vocab_size)
    middle = pretrain.middle(model.num_layers)
    split = None if pretrain.bottom_layers is not None else split_of(pretrain.top_layers, model.num_layers)
    heldout = [
        HeldOutText.read(name, path, tokenizer, batch.max_length, pretrain.eval_tokens)
        for name, path in zip(names_of_files(run_settings.eval_data or []), run_settings.eval_data or [])
    ]
    inputs = {"base model": model_dir, "text": names_of(sources)}
    exported = job.try_export(model, inputs, tokenizer, None, eos_ids)
    folder = Path(pretrain.token_cache or Path(run_settings.runs, run_settings.lang, "tokens"))
    if folder.resolve().is_relative_to(job.run.path.resolve()):
        raise UserError(f"tokenised text goes to {folder}, in --output {job.run.path}: give another --token-cache")
    corpus = Corpus(sources, tokenise(sources, tokenizer, folder, job.world, job.console), batch.max_length)
    frozen = sum(p.numel() for i in middle for p in model.layers[i].parameters())
    disk = job.disk(len(corpus), batch, model, num_trained(model, split) - frozen)
    job.run.start()
    context = job.context(run_settings, job.settings[1], batch, pretrain, corpus.mixture)
    trainer = PretrainTrainer(model, corpus, heldout, context)
    steps = len(trainer.steps)
    job.header(f"Continued pretraining in {job.language.name}", {
        "model": f"{model_dir} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        **rows_of(corpus, trainer),
        "plan": f"{steps} steps of {len(trainer.steps[0])} rows of {batch.max_length} tokens",
        "trained": trained_line(pretrain, middle, model.num_layers),
        **{f"held out {n}": f"{t.path} ({t.documents:,} documents, {sum(t.bytes):,} bytes), as {t.name}"
           for n, t in enumerate(heldout, start=1)},
        "disk": disk,
    }, steps)  # fmt: skip
    if not heldout:
        job.console.say("nothing is held out: --eval-data names a file, best one for each language")
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            save_trained(trainer.zero, model, job.run.model_dir, exported, job.world, eos_ids)
        if job.world.is_first:
            write_card(job.run.model_dir, "pretrain", job.card_settings, inputs, result, tokenizer, eos_ids)
        job.run.finish(result)


def rows_of(corpus: Corpus, trainer: PretrainTrainer) -> dict[str, str]:
    """Return header rows: what each file holds, and what it gives to the run."""
    shares, given = corpus.mixture.shares, trainer.steps.had(len(trainer.steps))
    return {
        f"text {f + 1}": f"{source.path}: {file.documents:,} documents, {file.tokens:,} tokens, {share:.1%} of the "
        f"rows, read {drawn / count:.2f} times"
        for f, (source, file, share, drawn, count) in enumerate(
            zip(corpus.mixture.sources, corpus.files, shares, given, corpus.mixture.counts)
        )
    }


def trained_line(pretrain: PretrainSettings, middle: range, num_layers: int) -> str:
    """Say which layers are trained, and whether the embeddings have a rate of their own."""
    if pretrain.bottom_layers is not None:
        lowest = f"the lowest {middle.start} and " if middle.start else ""
        line = f"{lowest}the top {num_layers - middle.stop} of {num_layers} layers, with embeddings and head"
    elif pretrain.top_layers == "all":
        line = "all layers"
    else:
        line = f"the top {pretrain.top_layers} of {num_layers} layers, without embeddings and head"
    return line if pretrain.embedding_lr is None else f"{line}, embeddings at {pretrain.embedding_lr:g}"


def show(job: Job) -> None:
    """Print the result as a short table."""
    result = job.run.result
    rows = [["loss, first -> last step", f"{result['loss_first']:.3f} -> {result['loss_last']:.3f}"]]
    for name in [name for name in result if name.startswith("perplexity/") and f"{name}_before" in result]:
        text = name.removeprefix("perplexity/")
        bits = f"bits_per_byte/{text}"
        rows.append([f"{text}: perplexity, before -> after", f"{result[f'{name}_before']:.4g} -> {result[name]:.4g}"])
        rows.append(
            [f"{text}: bits per byte, before -> after", f"{result[f'{bits}_before']:.4f} -> {result[bits]:.4f}"]
        )
    for name, counts in result["drawn"].items():
        rows.append([f"drawn from {name}", f"{counts['documents']:,} documents, {counts['tokens']:,} tokens"])
    job.console.say()
    job.console.table(["continued pretraining", f"{result['seconds']:.0f} s"], rows)
    if "kept" in result:
        job.console.say(f"  {in_words(result['kept'])}")
    job.console.say(f"  model: {job.run.model_dir}   curves: {job.curves}")


if __name__ == "__main__":
    main(job)
