"""Score multiple-choice tasks: `deepspeed launch/evaluate.py --lang ne --model DIR --tasks arc --data-dir DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import PreTrainedTokenizerFast

import kernels
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.distributed.world import World, start_world
from evaluation.data.files import Data, open_data
from evaluation.protocols import Protocol, get_protocol
from evaluation.results.manifest import run_manifest, task_manifest
from evaluation.results.output import Output
from evaluation.results.records import record_of
from evaluation.results.summary import Summary, results_json, summarise
from evaluation.scoring.build import build, check_files
from evaluation.scoring.documents import Document, TaskDocuments
from evaluation.scoring.score import Scorer
from evaluation.scoring.shards import shard
from evaluation.settings import EvaluateSettings
from evaluation.tasks import Task, get_tasks
from launch.common import choose_dtype, load_checked
from launch.lengths import served_length

Key = tuple[str, str]  # task, language


@dataclass(frozen=True)
class Evaluation:
    """An evaluation after its checks: settings, data, and the loaded scorer."""

    settings: EvaluateSettings
    tasks: list[Task]
    protocol: Protocol
    data: Data
    output: Output
    world: World
    console: Console
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    scorer: Scorer
    manifest: dict[str, Any]


def job(argv: Sequence[str]) -> None:
    """Score every task, language by language. Documents with stored scores are not scored again."""
    (settings,) = parse_settings(
        (EvaluateSettings,), argv, "deepspeed launch/evaluate.py", "Multiple-choice evaluation of one model."
    )
    run = prepare(settings)
    with closing(run.output):
        evaluate(run)


def evaluate(run: Evaluation) -> None:
    """Score the documents, write the results and print them."""
    settings = run.settings
    began, started = time.monotonic(), datetime.now(UTC)
    summaries: dict[str, list[Summary]] = {}
    counts: dict[str, dict[str, int]] = {}
    for code in settings.languages:
        built = build_language(run, code)
        for group in group_tasks(built):
            score(run, group)
        for key, item in built.items():
            counts[".".join(key)] = item.counts
            if run.world.is_first:
                records = run.output.records(*key).merge(item.task.metrics)
                lines = summarise(*key, item.task.metrics, item.task.groups, run.protocol.average, records)
                summaries[".".join(key)] = lines
        run.world.barrier()
    work, seconds = total_work(run), time.monotonic() - began
    if run.world.is_first:
        write_results(run, summaries, counts, work, started, seconds)
        show(run.console, summaries, counts)
        run.console.say(
            f"\n  {work['tree_tokens']:,} token positions, {work['positions_computed']:,} computed, {seconds:.1f} s\n"
            f"  {run.output.path / 'results.json'}; one line per document in {run.output.path}/<task>.<lang>.jsonl"
        )
    run.world.barrier()


def prepare(settings: EvaluateSettings) -> Evaluation:
    """Check the inputs, load the model and print the header."""
    for code in settings.languages:
        get_language(code)
    tasks, protocol = get_tasks(settings.task_names), get_protocol(settings.protocol)
    data = open_data(settings.data_dir)
    for task, code in ((task, code) for task in tasks for code in settings.languages):
        check_files(task, code, data, protocol, settings.shots, settings.split)
    output = Output(Path(settings.output or Path(settings.runs, settings.lang, "evaluate")))
    world = start_world()
    console, dtype = Console(world.is_first), choose_dtype(settings.dtype, world.device)
    length, room = served_length(settings.model, settings.max_length)
    model, tokenizer = load_checked(settings.model, dtype, world.device)
    model.requires_grad_(False)
    manifest = run_manifest(model, tokenizer, kernels.__version__)
    output.check(manifest, settings.overwrite)
    scorer = Scorer(model, settings.batch_tokens, settings.cache_tokens, torch.get_num_threads())
    console.header(f"Evaluation in {', '.join(get_language(code).name for code in settings.languages)}", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        "room": room,
        "tasks": f"{', '.join(task.name for task in tasks)}, protocol {protocol.name}",
        "template": "none: the protocol's own prompts",
        "data": settings.data_dir,
        "ranks": f"{world.size} x {manifest['device']}, {manifest['dtype']}, {scorer.num_threads} thread(s) each",
        "results": output.path,
    })  # fmt: skip
    return Evaluation(settings, tasks, protocol, data, output, world, console, tokenizer, length, scorer, manifest)


def build_language(run: Evaluation, code: str) -> dict[Key, TaskDocuments]:
    """Return the documents of every task, and enter them in the output's manifest after all ranks have checked it."""
    s = run.settings
    built = {
        (task.name, code): build(
            task, code, run.data, run.tokenizer, run.protocol, run.max_length, shots=s.shots,
            shared_shots=s.shared_shots, limit=s.limit, seed=s.seed, split=s.split, skip_bad=s.bad_records == "skip",
        )
        for task in run.tasks
    }  # fmt: skip
    how = {"shared_shots": s.shared_shots, "limit": s.limit, "split": s.split, "seed": s.seed,
           "max_length": run.max_length, "bad_records": s.bad_records}  # fmt: skip
    abouts = {".".join(key): task_manifest(item, how) for key, item in built.items()}
    for item in built.values():
        run.scorer.check(item.documents)
    if not s.overwrite:
        for key, about in abouts.items():
            run.output.check_task(key, about)
    run.world.barrier()
    mistake = None
    if run.world.is_first:
        try:
            if code == s.languages[0]:
                run.output.start(run.manifest, s.overwrite)
            for key, about in abouts.items():
                run.output.add_task(key, about)
        except UserError as error:
            mistake = str(error)
    if mistake := run.world.gather(mistake)[0]:
        raise UserError(mistake)
    return built


def group_tasks(built: dict[Key, TaskDocuments]) -> list[dict[Key, TaskDocuments]]:
    """Group the tasks of each benchmark: they share prompts, so one prefix tree serves them."""
    groups: dict[str, dict[Key, TaskDocuments]] = {}
    for key, item in built.items():
        groups.setdefault(item.task.folder, {})[key] = item
    return list(groups.values())


def score(run: Evaluation, built: dict[Key, TaskDocuments]) -> None:
    """Score this rank's share of the documents without stored scores, and append their records."""
    metrics = {key: item.task.metrics for key, item in built.items()}
    done = {key: run.output.records(*key).done(metrics[key]) for key in built}
    run.world.barrier()  # no rank may append before all have read the stored records
    left: list[tuple[Key, Document]] = [
        (key, document) for key, item in built.items() for document in item.documents
        if document.index not in done[key]
    ]  # fmt: skip
    names = ", ".join(".".join(key) for key in built)
    if there := sum(map(len, done.values())):
        run.console.say(f"  {names}: {there:,} documents are already scored, {len(left):,} are left")
    mine = [left[i] for i in shard([document for _, document in left], run.world.size)[run.world.rank]] if left else []
    began = time.monotonic()
    with ExitStack() as files, run.console.bar(len(mine), names, "document") as bar:
        writers = {key: files.enter_context(run.output.records(*key).append(run.world.rank)) for key in built}
        for place, lls in run.scorer.score([document for _, document in mine]):
            key, document = mine[place]
            writers[key](record_of(document, lls, metrics[key]))
            bar.update()
    run.world.barrier()
    if left:
        seconds = time.monotonic() - began
        run.console.say(f"  {names}: {len(left):,} documents in {seconds:.1f} s, {len(left) / seconds:.1f}/s")


def total_work(run: Evaluation) -> dict[str, Any]:
    """Return the work summed over the ranks; for peaks, the largest."""
    of_ranks = [asdict(work) for work in run.world.gather(run.scorer.work)]
    return {name: (max if name.startswith("peak") else sum)(w[name] for w in of_ranks) for name in of_ranks[0]}


def write_results(
    run: Evaluation,
    summaries: dict[str, list[Summary]],
    counts: dict[str, dict[str, int]],
    work: dict[str, Any],
    started: datetime,
    seconds: float,
) -> None:
    """Write results.json, with the run fields of lm-eval's results."""
    model = run.settings.model
    about = {
        "work": {**work, "seconds": seconds},
        "model_name": model, "model_source": "okapi-rlhf", "transformers_version": version("transformers"),
        "date": started.timestamp(), "start_time": started.isoformat(), "total_evaluation_time_seconds": seconds,
    }  # fmt: skip
    config = {"model": "okapi-rlhf", "model_args": f"pretrained={model}", "batch_size": None,
              "device": run.manifest["device"], **asdict(run.settings)}  # fmt: skip
    run.output.add_results(results_json(summaries, run.output.manifest() or {}, counts, config, about))


def show(console: Console, summaries: dict[str, list[Summary]], counts: dict[str, dict[str, int]]) -> None:
    """Print tasks, groups and subsets as a table. Subjects are in results.json only."""
    rows = []
    for lines in summaries.values():
        for line in lines:
            if line is lines[0] or line.members or line.apart:
                for metric, mean in line.metrics.items():
                    chance = f"{100 * line.chance:.2f}" if metric == next(iter(line.metrics)) else ""
                    rows.append((
                        line.name, metric, f"{100 * mean.value:.2f}", f"{100 * mean.stderr:.2f}", chance,
                        str(line.ties.get(metric, "")), f"{line.count:,}",
                    ))  # fmt: skip
    console.say()
    console.table(("task", "metric", "%", "+-", "chance", "ties", "documents"), rows)
    for key, values in counts.items():
        suffix = dict.fromkeys(("bad_records", "unlabelled"), " skipped")
        handled = {name: n for name, n in values.items() if name not in ("documents", "prompt_tokens")}
        if handled:
            notes = ", ".join(f"{n:,} {name.replace('_', ' ')}{suffix.get(name, '')}" for name, n in handled.items())
            console.say(f"  {key}: {values['documents']:,} documents, {notes}")


if __name__ == "__main__":
    main(job)
