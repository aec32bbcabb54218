"""Multiple-choice evaluation: `deepspeed launch/evaluate.py --lang ne --model DIR --tasks arc --data-dir DIR`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kernels
from engine.cli import main, parse_settings
from engine.console import Console
from engine.distributed import World, start_world
from engine.languages import get_language
from engine.models import load_config
from engine.tokenizer import load_tokenizer
from evaluation.build import build
from evaluation.context_length import context_length
from evaluation.data import open_data
from evaluation.manifest import run_manifest, task_manifest
from evaluation.output import Output
from evaluation.protocols import get_protocol
from evaluation.records import record_of
from evaluation.requests import Document, TaskDocuments
from evaluation.results import Summary, results_json, summarise
from evaluation.scoring import Scorer
from evaluation.settings import EvaluateSettings
from evaluation.shares import shares
from evaluation.tasks import get_tasks
from launch.common import choose_dtype, load_checked

Key = tuple[str, str]  # task, language


def job(argv: Sequence[str]) -> None:
    """Score every task in every language, one language after the other; what is there already is not scored again."""
    (settings,) = parse_settings(
        (EvaluateSettings,), argv, "deepspeed launch/evaluate.py", "Multiple-choice evaluation of one model."
    )
    for code in settings.languages:
        get_language(code)
    tasks, protocol = get_tasks(settings.task_names), get_protocol(settings.protocol)
    data = open_data(settings.data_dir)
    for task, code in ((task, code) for task in tasks for code in settings.languages):
        task.form(protocol.name, code)
        if not data.has(task.folder, code, settings.split or task.part):
            data.read(task.folder, code, settings.split or task.part)  # says which file is missing
    output = Output(Path(settings.output or Path(settings.runs, settings.lang, "evaluate")))
    world = start_world()
    console, dtype = Console(world.is_first), choose_dtype(settings.dtype, world.device)
    length = settings.max_length or context_length(load_config(settings.model), load_tokenizer(settings.model))
    model, tokenizer = load_checked(settings.model, dtype, world.device, length)
    model.requires_grad_(False)
    manifest = run_manifest(model, tokenizer, kernels.__version__)
    output.check(manifest, settings.overwrite)
    scorer = Scorer(model, settings.batch_tokens, settings.cache_tokens, torch.get_num_threads())

    console.header(f"Evaluation in {', '.join(get_language(code).name for code in settings.languages)}", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        "tasks": f"{', '.join(task.name for task in tasks)}, protocol {protocol.name}",
        "data": settings.data_dir,
        "ranks": f"{world.size} x {manifest['device']}, {manifest['dtype']}, {scorer.num_threads} threads each",
        "results": output.path,
    })  # fmt: skip
    how = {"shared_shots": settings.shared_shots, "limit": settings.limit, "split": settings.split,
           "seed": settings.seed, "max_length": length, "bad_records": settings.bad_records}  # fmt: skip
    began, started = time.monotonic(), datetime.now(UTC)
    summaries: dict[Key, list[Summary]] = {}
    counts: dict[Key, dict[str, int]] = {}
    for code in settings.languages:
        built = {
            (task.name, code): build(
                task, code, data, tokenizer, protocol, length, shots=settings.shots, shared_shots=settings.shared_shots,
                limit=settings.limit, seed=settings.seed, split=settings.split,
                skip_bad=settings.bad_records == "skip",
            )
            for task in tasks
        }  # fmt: skip
        for item in built.values():
            scorer.check(item.documents)
        abouts = {key: task_manifest(item, how) for key, item in built.items()}
        if not settings.overwrite:
            for key, about in abouts.items():
                output.check_task(".".join(key), about)
        world.barrier()  # nothing is written before every rank has looked
        if world.is_first:
            if code == settings.languages[0]:
                output.start(manifest, settings.overwrite)
            for key, about in abouts.items():
                output.add_task(".".join(key), about)
        world.barrier()
        for group in together(built):
            score(scorer, group, output, world, console)
        for key, item in built.items():
            counts[key] = item.counts
            if world.is_first:
                records = output.records(*key).merge()
                summaries[key] = summarise(*key, item.task.metrics, item.task.groups, protocol.average, records)
        world.barrier()
    work = total_work(scorer, world)
    seconds = time.monotonic() - began
    if world.is_first:
        run = {
            "work": {**work, "seconds": seconds},
            "model_name": settings.model, "model_source": "okapi-rlhf", "transformers_version": version("transformers"),
            "date": started.timestamp(), "start_time": started.isoformat(), "total_evaluation_time_seconds": seconds,
        }  # fmt: skip
        config = {"model": "okapi-rlhf", "model_args": f"pretrained={settings.model}", "batch_size": None,
                  "device": manifest["device"], "limit": settings.limit, **asdict(settings)}  # fmt: skip
        found = {".".join(key): lines for key, lines in summaries.items()}
        handled = {".".join(key): values for key, values in counts.items()}
        output.add_results(results_json(found, output.manifest() or {}, handled, config, run))
        show(console, summaries, counts)
        console.say(
            f"\n  {work['tree_tokens']:,} token positions, computed {work['positions_computed']:,}, {seconds:.1f} s\n"
            f"  {output.path / 'results.json'}; one line a document in {output.path}/<task>.<lang>.jsonl"
        )
    world.barrier()


def together(built: dict[Key, TaskDocuments]) -> list[dict[Key, TaskDocuments]]:
    """Tasks of one benchmark share their prompts, and so a tree."""
    groups: dict[str, dict[Key, TaskDocuments]] = {}
    for key, item in built.items():
        groups.setdefault(item.task.folder, {})[key] = item
    return list(groups.values())


def score(scorer: Scorer, built: dict[Key, TaskDocuments], output: Output, world: World, console: Console) -> None:
    """Score the documents that no earlier run has, each rank its share, and add their records to the rank's parts."""
    metrics = {key: item.task.metrics for key, item in built.items()}
    done = {key: output.records(*key).done() for key in built}
    world.barrier()  # no rank may add records before all have read what there is
    left: list[tuple[Key, Document]] = [
        (key, document) for key, item in built.items() for document in item.documents
        if document.index not in done[key]
    ]  # fmt: skip
    names = ", ".join(".".join(key) for key in built)
    if there := sum(map(len, done.values())):
        console.say(f"  {names}: {there:,} documents are there, {len(left):,} are left")
    mine = [left[i] for i in shares([document for _, document in left], world.size)[world.rank]] if left else []
    began = time.monotonic()
    with ExitStack() as files, console.bar(len(mine), names, "document") as bar:
        writers = {key: files.enter_context(output.records(*key).append(world.rank)) for key in built}
        for place, lls in scorer.score([document for _, document in mine]):
            key, document = mine[place]
            writers[key](record_of(document, lls, metrics[key]))
            bar.update()
    world.barrier()
    if left:
        seconds = time.monotonic() - began
        console.say(f"  {names}: {len(left):,} documents in {seconds:.1f} s, {len(left) / seconds:.1f}/s")


def total_work(scorer: Scorer, world: World) -> dict[str, Any]:
    """Sums over the ranks; the peak is the largest of one."""
    of_ranks = [asdict(work) for work in world.gather(scorer.work)]
    return {name: (max if name.startswith("peak") else sum)(w[name] for w in of_ranks) for name in of_ranks[0]}


def show(console: Console, summaries: dict[Key, list[Summary]], counts: dict[Key, dict[str, int]]) -> None:
    """Tasks and groups as a table; subjects are in results.json."""
    rows = []
    for lines in summaries.values():
        for line in lines:
            if line is lines[0] or line.members:
                for metric, mean in line.metrics.items():
                    chance = f"{100 * line.chance:.2f}" if metric == next(iter(line.metrics)) else ""
                    rows.append((
                        line.name, metric, f"{100 * mean.value:.2f}", f"{100 * mean.stderr:.2f}", chance,
                        str(line.ties.get(metric, "")), f"{line.count:,}",
                    ))  # fmt: skip
    console.say()
    console.table(("task", "metric", "%", "+-", "chance", "ties", "documents"), rows)
    for key, values in counts.items():
        handled = {name: n for name, n in values.items() if name not in ("documents", "prompt_tokens")}
        if handled:
            told = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in handled.items())
            console.say(f"  {'.'.join(key)}: {told} (of {values['documents']:,} documents)")


if __name__ == "__main__":
    main(job)
