"""Score choices, or generate answers and check them: `deepspeed launch/evaluate.py --lang ne --model DIR ...`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
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
from evaluation.answers.build import TaskQuestions, build_questions, check_task
from evaluation.data.files import Data, open_data
from evaluation.protocols import Protocol, get_protocol
from evaluation.results.found import Found, show
from evaluation.results.manifest import answers_manifest, run_manifest, task_manifest
from evaluation.results.output import Output
from evaluation.results.power import power_line
from evaluation.results.records import record_of
from evaluation.results.runs import Key
from evaluation.results.spread import OF_DRAWS, Draw, about_draws, combine, spread_of
from evaluation.results.summary import Record, Summary, results_json, summarise
from evaluation.scoring.build import build, check_files
from evaluation.scoring.documents import Document, TaskDocuments, group_tasks
from evaluation.scoring.score import Scorer
from evaluation.scoring.shards import shard
from evaluation.settings import AnswerSettings, EvaluateSettings
from evaluation.tasks import AnswerTask, Task, get_tasks
from launch.answers import Answerer, answer, check_answers, make_answerer
from launch.common import choose_dtype, load_checked
from launch.lengths import served_length

Built = TaskDocuments | TaskQuestions


@dataclass(frozen=True)
class Evaluation:
    """An evaluation after its checks: settings, data, and the loaded scorer.

    draws  the output folder of each seed of --seeds; whole: for one of these seeds, the output of all
    """

    settings: EvaluateSettings
    tasks: list[Task | AnswerTask]
    protocol: Protocol
    data: Data
    output: Output
    world: World
    console: Console
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    scorer: Scorer
    answerer: Answerer | None
    manifest: dict[str, Any]
    draws: dict[int, Output]
    whole: Output | None = None

    def of_seed(self, seed: int) -> Evaluation:
        """Return the evaluation of one seed of --seeds, whose output is a folder in that of the whole."""
        settings = replace(self.settings, seed=seed, seeds=None)
        return replace(self, settings=settings, output=self.draws[seed], draws={}, whole=self.output)

    def close(self) -> None:
        """Release the locks of the output folders."""
        for output in (self.output, *self.draws.values()):
            output.close()


def job(argv: Sequence[str]) -> None:
    """Score every task, language by language. Documents with stored scores are not scored again."""
    run = prepare(*parse_settings(
        (EvaluateSettings, AnswerSettings), argv, "deepspeed launch/evaluate.py",
        "Evaluation of one model: multiple choice, pairs of sentences, and generated answers.",
    ))  # fmt: skip
    with closing(run):
        evaluate(run)


def evaluate(run: Evaluation) -> None:
    """Score the documents, write the results and print them."""
    settings = run.settings
    began, started = time.monotonic(), datetime.now(UTC)
    found = Found()
    for code in settings.languages:
        if settings.seed_list:
            evaluate_draws(run, code, found)
        else:
            for key, (item, draw) in evaluate_language(run, code).items():
                if run.world.is_first:
                    found.add(".".join(key), summarise_task(run, key, item, draw.records), item.counts)
        run.world.barrier()
    work, seconds = total_work(run), time.monotonic() - began
    if run.world.is_first:
        write_results(run, found, work, started, seconds)
        show(run.console, found)
        scored = f"{work['tree_tokens']:,} token positions, {work['positions_computed']:,} computed, "
        run.console.say(
            f"\n  {scored if any(isinstance(task, Task) for task in run.tasks) else ''}{seconds:.1f} s\n"
            f"  {run.output.path / 'results.json'}; one line per document in {run.output.path}/<task>.<lang>.jsonl"
        )
    run.world.barrier()


def summarise_task(run: Evaluation, key: Key, item: Built, records: Sequence[Record]) -> list[Summary]:
    return summarise(*key, item.task.metrics, item.task.groups, run.protocol.average, records)


def evaluate_language(
    run: Evaluation, code: str, earlier: Mapping[Key, Sequence[Draw]] | None = None
) -> dict[Key, tuple[Built, Draw]]:
    """Score every task in one language and return its documents and records, the records on the first rank only.

    earlier  draws of other seeds: a task whose prompts are those of one of them is neither scored nor returned
    """
    built = build_language(run, code)
    abouts = {key: about_of(run, item) for key, item in built.items()}
    if earlier is not None:
        known = {key: [draw.about["prompts_sha256"] for draw in draws] for key, draws in earlier.items()}
        built = {key: item for key, item in built.items() if abouts[key]["prompts_sha256"] not in known.get(key, ())}
    if not earlier:
        for key, item in built.items():
            count = len(item.documents if isinstance(item, TaskDocuments) else item.asked)
            run.console.say(f"  {power_line('.'.join(key), count)}")
    enter(run, built, abouts)
    for group in group_tasks({key: item for key, item in built.items() if isinstance(item, TaskDocuments)}):
        score(run, group)
    for key, item in built.items():
        if run.answerer and isinstance(item, TaskQuestions):
            answer(run.answerer, item, run.output.records(*key), run.world, run.console)
    seed = run.protocol.seed if run.settings.seed is None else run.settings.seed
    found = {}
    for key, item in built.items():
        records = run.output.records(*key).merge(item.task.metrics) if run.world.is_first else []
        found[key] = (item, Draw(seed, abouts[key], records))
    run.world.barrier()
    return found


def evaluate_draws(run: Evaluation, code: str, found: Found) -> None:
    """Score one language with the shots of each seed, and add the means over the seeds to `found`.

    OUT/seed<N> holds the records of one seed as a single evaluation does, and is resumed like one. OUT itself holds the
    mean of each document's scores.
    """
    seeds = run.settings.seed_list
    draws: dict[Key, list[Draw]] = {}
    items: dict[Key, Built] = {}
    for seed in seeds:
        run.console.say(f"  seed {seed}")
        for key, (item, draw) in evaluate_language(run.of_seed(seed), code, draws).items():
            items.setdefault(key, item)
            draws.setdefault(key, []).append(draw)

    def put() -> None:
        for key, drawn in draws.items():
            records, name = combine(drawn), ".".join(key)
            run.output.put_task(name, about_draws(drawn, seeds), records)
            lines = summarise_task(run, key, items[key], records)
            by_draw = {draw.seed: summarise_task(run, key, items[key], draw.records) for draw in drawn}
            spreads = spread_of(lines, by_draw)
            found.add(name, lines, items[key].counts, spreads)

    on_first(run, put)
    for key, drawn in draws.items():
        if len(drawn) == 1:
            run.console.say(f"  {'.'.join(key)}: all seeds give the same shots, scored once")


def on_first(run: Evaluation, do: Callable[[], None]) -> None:
    """Call `do` on the first rank. Its UserError is raised on every rank."""
    mistake = None
    if run.world.is_first:
        try:
            do()
        except UserError as error:
            mistake = str(error)
    if mistake := run.world.gather(mistake)[0]:
        raise UserError(mistake)


def prepare(settings: EvaluateSettings, how: AnswerSettings) -> Evaluation:
    """Check the inputs, load the model and print the header."""
    for code in settings.languages:
        get_language(code)
    tasks, protocol = get_tasks(settings.task_names), get_protocol(settings.protocol)
    data = open_data(settings.data_dir)
    for task, code in ((task, code) for task in tasks for code in settings.languages):
        check = check_task if isinstance(task, AnswerTask) else check_files
        check(task, code, data, protocol, settings.shots, settings.split)
    answered = [task for task in tasks if isinstance(task, AnswerTask)]
    if answered and settings.seeds:
        raise UserError(f"--seeds draws shots, and task {answered[0].name} generates answers: give one --seed for it")
    check_answers(answered, how)
    output = Output(Path(settings.output or Path(settings.runs, settings.lang, "evaluate")))
    world = start_world()
    console = Console(world.is_first)
    dtype = choose_dtype(settings.dtype, world.device, console.say)
    length, room = served_length(settings.model, settings.max_length)
    model, tokenizer = load_checked(settings.model, dtype, world.device, settings)
    model.requires_grad_(False)
    manifest = run_manifest(model, tokenizer, kernels.__version__)
    output.check(manifest, settings.overwrite)
    draws = {seed: Output(output.path / f"seed{seed}") for seed in settings.seed_list}
    for draw in draws.values() if not settings.overwrite else ():
        draw.check(manifest, False)
    scorer = Scorer(model, settings.batch_tokens, settings.cache_tokens, torch.get_num_threads())
    answerer = make_answerer(model, tokenizer, settings, how, length, answered) if answered else None
    console.header(f"Evaluation in {', '.join(get_language(code).name for code in settings.languages)}", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})"
        + f", layers in {settings.trunk_dtype}" * (settings.trunk_dtype != "model")
        + f", embedding and head in {settings.embedding_dtype}" * (settings.embedding_dtype != "model"),
        "room": room,
        "tasks": f"{', '.join(task.name for task in tasks)}, protocol {protocol.name}",
        "template": answerer.choice.shown if answerer else "none: the protocol's own prompts",
        "data": settings.data_dir,
        "ranks": f"{world.size} x {manifest['device']}, {manifest['dtype']}, {scorer.num_threads} thread(s) each",
        "results": output.path,
    })  # fmt: skip
    return Evaluation(
        settings, tasks, protocol, data, output, world, console, tokenizer, length, scorer, answerer, manifest, draws
    )


def build_task(run: Evaluation, task: Task | AnswerTask, code: str) -> Built:
    """Return the documents of a task, or the questions of a generation task."""
    s = run.settings
    chosen = {"limit": s.limit, "split": s.split, "skip_bad": s.bad_records == "skip"}
    if isinstance(task, AnswerTask):
        assert run.answerer
        template, room = run.answerer.choice.template, run.answerer.max_prompt_length
        return build_questions(task, code, run.data, run.tokenizer, template, run.protocol, room, **chosen)
    return build(
        task, code, run.data, run.tokenizer, run.protocol, run.max_length, shots=s.shots,
        shared_shots=s.shared_shots, seed=s.seed, **chosen,
    )  # fmt: skip


def build_language(run: Evaluation, code: str) -> dict[Key, Built]:
    """Return the documents or questions of every task. UserError if a document does not fit in the cache."""
    built = {(task.name, code): build_task(run, task, code) for task in run.tasks}
    for item in built.values():
        if isinstance(item, TaskDocuments):
            run.scorer.check(item.documents)
    return built


def about_of(run: Evaluation, item: Built) -> dict[str, Any]:
    """Return the task's entry in the manifest."""
    s = run.settings
    how = {"shared_shots": s.shared_shots, "limit": s.limit, "split": s.split, "seed": s.seed,
           "max_length": run.max_length, "bad_records": s.bad_records}  # fmt: skip
    if isinstance(item, TaskDocuments):
        return task_manifest(item, how)
    assert run.answerer
    return answers_manifest(item, how, run.answerer.about(item.task), run.answerer.of_model())


def enter(run: Evaluation, built: Iterable[Key], abouts: Mapping[Key, Mapping[str, Any]]) -> None:
    """Enter the tasks in the output's manifest after all ranks have checked it."""
    s = run.settings
    for key in built if not s.overwrite else ():
        name, about = ".".join(key), abouts[key]
        if run.whole is not None:
            run.whole.check_task(name, about_draws([Draw(0, about, [])], []), ignore=OF_DRAWS)
        run.output.check_task(name, about)
    run.world.barrier()

    def add() -> None:
        for output in filter(None, (run.whole, run.output)):
            output.start(run.manifest, s.overwrite)
        for key in built:
            run.output.add_task(".".join(key), abouts[key])

    on_first(run, add)


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


def write_results(run: Evaluation, found: Found, work: dict[str, Any], started: datetime, seconds: float) -> None:
    """Write results.json, with the run fields of lm-eval's results."""
    model = run.settings.model
    about = {
        "work": {**work, "seconds": seconds},
        "model_name": model, "model_source": "okapi-rlhf", "transformers_version": version("transformers"),
        **({"draws": found.spreads} if found.spreads else {}),
        "date": started.timestamp(), "start_time": started.isoformat(), "total_evaluation_time_seconds": seconds,
    }  # fmt: skip
    config = {"model": "okapi-rlhf", "model_args": f"pretrained={model}", "batch_size": None,
              "device": run.manifest["device"], **asdict(run.settings)}  # fmt: skip
    run.output.add_results(results_json(found.summaries, run.output.manifest() or {}, found.counts, config, about))


if __name__ == "__main__":
    main(job)
