"""`python -m datagen translate`: translate English instruction records into another language with a chat model.

One JSON object holds the instruction, input and output of a record, so they are translated together. A record with an
answer that fails a check goes to the quarantine with the reason (see datagen/text and datagen/translation). Tasks about
English itself (grammar, translation, spelling) and records that overlap a benchmark go to a separate file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datagen.api.chat import Ask, Record, Rejected, Work
from datagen.api.settings import add_api_arguments
from datagen.decontaminate import Benchmarks, Overlap, report
from datagen.run.command import require_rows, run_command, run_files
from datagen.run.prompt_templates import TEMPLATES_DIR, read_template
from datagen.run.runner import Review
from datagen.sources import check_outputs, read_sources
from datagen.text.language_tasks import LANGUAGE_TASKS, language_task
from datagen.text.length_ratios import LengthRatios
from datagen.translation.texts import LIMIT_TOKENS, MAX_TOKENS, TEMPLATE_NAMES, Translator, check_lengths, load_checks
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.records import write_jsonl

TEMPLATE_FILE = TEMPLATES_DIR / "translate.txt"
FIELDS = ("instruction", "input", "output")
_NOTE = (
    "- This task is about the English language ($kind): translate what tells the reader what to do, and leave the"
    " English words and sentences that are worked on, or that the answer consists of, in English.\n"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --lang CODE --data FILE --output FILE [flags]"
    parser.add_argument("--lang", nargs="+", required=True, metavar="CODE", help="one language; several for --dry-run")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="English instruction records")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="their translations")
    parser.add_argument("--language-tasks", choices=("aside", "translate"), default="aside",
                        help="tasks about grammar, translation, spelling (aside)")  # fmt: skip
    parser.add_argument("--aside", metavar="FILE", help="records set aside, and reasons (OUTPUT.aside.jsonl)")
    parser.add_argument("--decontaminate", nargs="+", default=[], metavar="FILE", help="benchmarks not to overlap")
    parser.add_argument("--template", type=Path, default=TEMPLATE_FILE, metavar="FILE", help="the prompt (built in)")
    parser.add_argument("--split-above", type=int, default=LIMIT_TOKENS, metavar="N", help="tokens per request (500)")
    add_api_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(args: argparse.Namespace) -> None:
    languages = [get_language(code) for code in args.lang]
    if english := next((language for language in languages if language.code == "en"), None):
        raise UserError(f"--lang {english.code}: the records are in English already; name another language")
    if len(languages) > 1 and not args.dry_run:
        raise UserError(f"--lang names {len(languages)} languages: translate into one at a time, or add --dry-run")
    if args.split_above < 1:
        raise UserError(f"--split-above {args.split_above} must be 1 or more")
    files, aside_path = run_files(args), args.aside or f"{args.output}.aside.jsonl"
    inputs = [*args.data, *args.decontaminate, str(files.journal), str(files.quarantine)]
    check_outputs(inputs, {"--output": str(args.output), "--aside": aside_path})
    template = read_template(args.template, **TEMPLATE_NAMES)
    is_checked = not args.dry_run
    translators = {lang.code: Translator(lang, template, args.split_above, is_checked) for lang in languages}
    benchmarks = Benchmarks(args.decontaminate)
    records, aside, overlaps = split_records(read_instructions(args.data), benchmarks, args.language_tasks == "aside")
    work = make_work(translators)
    if not args.dry_run:
        load_checks(languages[0])
    jobs = [{**record, "lang": code} for code in translators for record in records]
    review = make_review(LengthRatios(), benchmarks)
    if not args.dry_run:
        Path(aside_path).unlink(missing_ok=True)
        if aside:
            write_jsonl(aside_path, aside)
    lines = describe(len(records), aside, aside_path) + (report(overlaps, benchmarks) if args.decontaminate else [])
    print("\n".join(lines), file=sys.stderr)
    require_rows(run_command(jobs, work, args, lambda record: record["lang"], review), args.output)


def read_instructions(paths: Sequence[str]) -> list[Record]:
    """Read records and add missing fields: `id` (the record's number, as a string), `input` and `output` ("").

    Other fields stay. UserError with file, line and field for an empty or missing instruction, a field that is not a
    string, or a duplicate id.
    """
    records, where_of = [], {}
    for number, source in enumerate(read_sources(paths), 1):
        texts = {"instruction": source.text("instruction"), **{name: source.text(name, "") for name in FIELDS[1:]}}
        if not texts["instruction"].strip():
            raise UserError(f"{source.where}: field 'instruction' is empty: fill it or drop the record")
        id = source.fields.get("id", number)
        if not isinstance(id, (str, int)) or isinstance(id, bool):
            raise UserError(f"{source.where}: field 'id' is {id!r:.60}: it must be a string or an integer")
        id = str(id)
        if id in where_of:
            raise UserError(
                f"{source.where}: field 'id' is {id!r:.60}, as in {where_of[id]}: make ids unique or remove them"
            )
        where_of[id] = source.where
        records.append({**source.fields, "id": id, **texts})
    return records


def split_records(
    records: Sequence[Record], benchmarks: Benchmarks, tasks_aside: bool
) -> tuple[list[Record], list[Record], list[Overlap]]:
    """Return the records to translate, the records set aside (with `reason`), and the overlaps with benchmarks.

    tasks_aside: set tasks about language aside; otherwise they are translated and get a field `language_task`.
    """
    kept, aside, overlaps = [], [], []
    for record in records:
        kind = language_task(record["instruction"])
        if overlap := benchmarks.overlap({name: record[name] for name in FIELDS}):
            overlaps.append(overlap)
            aside.append({**record, "reason": "overlaps a benchmark", **_overlap_fields(overlap)})
        elif kind and tasks_aside:
            aside.append({**record, "reason": kind})
        else:
            kept.append({**record, "language_task": kind} if kind else record)
    return kept, aside, overlaps


def _overlap_fields(overlap: Overlap) -> dict[str, str]:
    return {f"overlap_{name}": value for name, value in overlap._asdict().items()}


def make_work(translators: Mapping[str, Translator]) -> Work:
    """Return the work function: it translates a record into the language in its field `lang`."""

    async def work(record: Record, ask: Ask) -> list[Record]:
        kind = record.get("language_task")
        note = _NOTE.replace("$kind", kind) if kind else ""
        texts = {name: record[name] for name in FIELDS}
        translated = await translators[record["lang"]].translate(texts, ask, note, keeps_english=bool(kind))
        return [{**record, **translated}]

    return work


def make_review(ratios: LengthRatios, benchmarks: Benchmarks) -> Review:
    """Return the review: it checks lengths against earlier records, and overlaps with benchmarks in the language."""

    def review(record: Record, rows: list[Record]) -> None:
        (row,) = rows
        texts = {name: row[name] for name in FIELDS}
        if overlap := benchmarks.overlap(texts):
            raise Rejected(f"overlaps a benchmark: {overlap.path}:{overlap.where} (in {overlap.field})")
        if not record.get("language_task"):
            check_lengths(ratios, {name: record[name] for name in FIELDS}, texts)

    return review


def describe(to_translate: int, aside: Sequence[Mapping[str, Any]], aside_path: str) -> list[str]:
    """Return console lines: the number of records to translate, and of records set aside by reason."""
    counts = Counter(record["reason"] for record in aside)
    lines = [f"{to_translate:8,}  to translate"]
    about = [f"about {kind}" if kind in LANGUAGE_TASKS else kind for kind in counts]
    lines += [f"{count:8,}  set aside: {what}" for what, count in zip(about, counts.values())]
    return [*lines, f"{len(aside):8,}  set aside in total: {aside_path}"] if aside else lines
