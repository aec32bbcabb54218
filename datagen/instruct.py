"""`python -m datagen instruct`: generate English tasks with a chat model, by Self-Instruct as in Alpaca.

Each request shows three human-written seed tasks and asks for twenty more. A task is kept if it passes Alpaca's rules
(task_filters), overlaps no given benchmark, and has ROUGE-L of at most 0.7 with each seed, pool item and task kept
before. Request i draws its seeds from (--seed, i), and tasks are decided in request order. So the result does not
depend on the order of the answers or on interruptions, and a smaller --target gives a prefix of a larger one.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import string
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datagen.api.chat import CUT, Ask, Record, Rejected, Work
from datagen.api.settings import add_api_arguments, api_settings
from datagen.decontaminate import Benchmarks, Overlap, report
from datagen.rouge_filter import find_rejections
from datagen.run import prompt_templates
from datagen.run.command import INTERRUPTED, RunFiles, Watch, run_files
from datagen.run.dry_run import print_plan
from datagen.run.runner import ApiSettings, Session
from datagen.self_instruct.seed_tasks import SEEDS_FILE, Seed, draw_seeds, read_seeds
from datagen.self_instruct.task_filters import fault_of
from datagen.self_instruct.task_format import Task, format_tasks, parse_tasks
from datagen.sources import check_outputs, read_sources
from engine.base.errors import UserError
from engine.base.records import write_jsonl

EXAMPLES_PER_REQUEST = 3
TASKS_PER_REQUEST = 20
TEMPLATE_FILE = prompt_templates.TEMPLATES_DIR / "instruct.txt"
MAX_TOKENS = 3072  # per answer: more than twenty tasks need; Alpaca's number
FIRST_WAVE_REQUESTS = 50  # enough to measure the share of tasks that are kept
ASSUMED_KEEP_SHARE = 0.6  # before the first wave
MAX_REQUESTS_WITHOUT_KEEP = 20  # in a row; more would waste money, so the run stops
SOURCE = "generated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --output FILE --target N [flags]"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the kept tasks")
    parser.add_argument("--target", type=int, required=True, metavar="N", help="the number of tasks to keep")
    parser.add_argument("--seeds", nargs="+", default=[], metavar="FILE", help="seed tasks besides the 30 built in")
    parser.add_argument("--pool", nargs="+", default=[], metavar="FILE", help="instructions not to repeat, as Alpaca's")
    parser.add_argument("--decontaminate", nargs="+", default=[], metavar="FILE", help="benchmarks not to overlap")
    parser.add_argument("--rejected", metavar="FILE", help="rejected tasks and reasons (OUTPUT.rejected.jsonl)")
    parser.add_argument("--template", type=Path, default=TEMPLATE_FILE, metavar="FILE", help="the prompt (built in)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for drawing seed tasks (0)")
    add_api_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(args: argparse.Namespace) -> None:
    if args.target < 1:
        raise UserError(f"--target {args.target} must be 1 or more")
    files, settings = run_files(args), api_settings(args)
    rejected_path = args.rejected or f"{args.output}.rejected.jsonl"
    inputs = [*args.seeds, *args.pool, *args.decontaminate, str(files.journal), str(files.quarantine)]
    check_outputs(inputs, {"--output": str(args.output), "--rejected": rejected_path})
    seeds = [seed for path in (SEEDS_FILE, *args.seeds) for seed in read_seeds(path)]
    work = make_work(read_template(args.template), seeds, args.seed)
    if args.dry_run:
        count = math.ceil(args.target / (TASKS_PER_REQUEST * ASSUMED_KEEP_SHARE))
        print_plan(({"request": i} for i in range(count)), work, settings, files.journal, lambda _: "en")
        print(f"assuming that {ASSUMED_KEEP_SHARE:.0%} of the tasks are kept")
        return

    known = [KnownInstruction(seed.where, seed.task.instruction) for seed in seeds]
    known += [KnownInstruction(source.where, source.text("instruction")) for source in read_sources(args.pool)]
    selection = Selection(known, Benchmarks(args.decontaminate))
    stopped = asyncio.run(_ask_in_waves(selection, args.target, work, settings, files))
    write_jsonl(args.output, selection.kept)
    write_jsonl(rejected_path, selection.rejected)
    files.quarantine.unlink(missing_ok=True)
    if selection.failed:
        write_jsonl(files.quarantine, selection.failed)
    print("\n".join(selection.describe(str(args.output), rejected_path)), file=sys.stderr)
    if stopped == INTERRUPTED:
        raise SystemExit(130)
    if stopped:
        raise UserError(stopped)


def read_template(path: Path) -> string.Template:
    """Read the prompt template. UserError if it is unreadable, lacks a name or has an unknown one."""
    return prompt_templates.read_template(path, ("examples", "first", "last"), ("count", "examples_count"))


def make_prompt(template: string.Template, seeds: Sequence[Seed], seed: int, request: int) -> str:
    """Return the prompt of request number `request`, with its seed tasks as numbers 1 to 3. It asks for 4 to 23."""
    examples = [s.task for s in draw_seeds(seeds, EXAMPLES_PER_REQUEST, seed, request)]
    first = len(examples) + 1
    return template.substitute(
        count=TASKS_PER_REQUEST,
        first=first,
        last=first + TASKS_PER_REQUEST - 1,
        examples_count=len(examples),
        examples=format_tasks(examples),
    )


def make_work(template: string.Template, seeds: Sequence[Seed], seed: int) -> Work:
    """Return the work function for {"request": i}: rows {"id", "task"}; {"id", "reason", "text"} for invalid parts."""

    async def work(record: Record, ask: Ask) -> list[Record]:
        request = record["request"]
        messages = [{"role": "user", "content": make_prompt(template, seeds, seed, request)}]
        reply = await ask(messages, nonce=f"{seed}/{request}", temperature=1.0)
        parsed = parse_tasks(reply.text, EXAMPLES_PER_REQUEST + 1, TASKS_PER_REQUEST, was_cut=reply.ending == CUT)
        if not parsed.tasks:
            raise Rejected(f"no task in the answer ({parsed.dropped[0][0] if parsed.dropped else 'empty'})", reply)
        rows: list[Record] = [{"id": f"{request}-{number}", "task": task} for number, task in parsed.tasks]
        return rows + [{"id": f"{request}-?", "reason": reason, "text": text} for reason, text in parsed.dropped]

    return work


class KnownInstruction(NamedTuple):
    """An instruction that must not be repeated, and its location: "FILE:LINE" or "kept ID"."""

    where: str
    instruction: str


@dataclass
class Selection:
    """The kept tasks, and the rejected tasks and failed requests with their reasons, in request order."""

    known: list[KnownInstruction]  # seeds and pool: a task must not repeat them
    benchmarks: Benchmarks
    kept: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    requests: int = 0

    def add(self, rows: Sequence[Record], target: int) -> None:
        """Keep or reject the rows of a wave of requests. Keeps at most `target` tasks in total."""
        candidates = []
        for row in rows:
            reason = row.get("reason") or fault_of(row["task"])
            if reason:
                self._reject(row, reason=reason)
            elif overlap := self.benchmarks.overlap(row["task"]._asdict()):
                self.overlaps.append(overlap)
                self._reject(row, reason="overlaps a benchmark", **overlap._asdict())
            else:
                candidates.append(row)
        pool = [*self.known, *(KnownInstruction(f"kept {row['id']}", row["instruction"]) for row in self.kept)]
        new = [KnownInstruction(f"kept {row['id']}", row["task"].instruction) for row in candidates]
        near = {r.index: r for r in find_rejections([k.instruction for k in pool], [k.instruction for k in new])}
        pool += new
        for index, row in enumerate(candidates):
            if found := near.get(index):
                at, nearest = pool[found.nearest]
                self._reject(row, reason="near duplicate", nearest=nearest, nearest_at=at, rouge_l=found.score)
            elif len(self.kept) < target:
                self.kept.append({"id": row["id"], **row["task"]._asdict(), "lang": "en", "source": SOURCE})

    def describe(self, output: str, rejected_path: str) -> list[str]:
        """Return console lines: counts, and the reasons for rejection."""
        lines = [f"{len(self.kept):8,}  kept, from {self.requests:,} requests: {output}"]
        reasons = Counter(row["reason"].split(":")[0] for row in self.rejected)
        lines += [f"{count:8,}  rejected: {reason}" for reason, count in reasons.most_common()]
        lines += [f"{len(self.rejected):8,}  rejected in total: {rejected_path}"] if self.rejected else []
        lines += [f"{len(self.failed):8,}  requests without a usable answer: see the quarantine"] if self.failed else []
        return lines + (report(self.overlaps, self.benchmarks) if self.benchmarks.texts else [])

    def _reject(self, row: Record, **why: Any) -> None:
        task = row.get("task")
        fields = task._asdict() if isinstance(task, Task) else {"text": row["text"]}
        self.rejected.append({"id": row["id"], **fields, **why})


async def _ask_in_waves(
    selection: Selection, target: int, work: Work, settings: ApiSettings, files: RunFiles
) -> str | None:
    """Send requests in waves until the target is kept. Returns why it stopped early, or None.

    The size of a wave is an estimate of the requests still needed. Without waves, the run would pay for late answers
    that it does not need.
    """
    with Watch(None) as watch:
        async with Session(settings, files.journal, watch.log) as session:
            watch.start(session)
            size = min(FIRST_WAVE_REQUESTS, math.ceil(target / (TASKS_PER_REQUEST * ASSUMED_KEEP_SHARE)))
            without_keep = 0
            while len(selection.kept) < target and not session.stopped:
                kept_before = len(selection.kept)
                wave = [{"request": selection.requests + i} for i in range(size)]
                rows: list[Record] = []
                async for outcome in session.outcomes(wave, work):
                    watch.add(outcome)
                    selection.requests += 1
                    rows += outcome.rows
                    if outcome.reason is not None:
                        failed = {"index": outcome.record["request"], "reason": outcome.reason}
                        selection.failed.append({**failed, "record": outcome.record})
                selection.add(rows, target)
                watch.log(f"{len(selection.kept):,} of {target:,} kept after {selection.requests:,} requests")
                gain = len(selection.kept) - kept_before
                without_keep = 0 if gain else without_keep + size
                if without_keep >= MAX_REQUESTS_WITHOUT_KEEP and not session.stopped:
                    return (
                        f"no task kept from {without_keep} requests: see the rejected file and the quarantine for why"
                    )
                size = math.ceil(size * (target - len(selection.kept)) / gain) if gain else 2 * size
            return session.stopped
