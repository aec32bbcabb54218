"""`python -m datagen benchmark`: translate ARC, HellaSwag, MMLU and TruthfulQA items, in Okapi's schemas.

All texts of an item are translated together, in separate fields. The number and order of options, the answer key, the
id and all other fields stay. DIR/m_arc/en_test.json becomes OUTPUT/m_arc/ne_test.json.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datagen.api.chat import Ask, Record, Rejected, Work
from datagen.api.settings import add_api_arguments
from datagen.run.command import require_rows, run_command
from datagen.run.prompt_templates import read_template
from datagen.run.runner import Review
from datagen.sources import read_sources
from datagen.text.length_ratios import LengthRatios
from datagen.translate import TEMPLATE_FILE
from datagen.translation.benchmark_schemas import Item, check_item, item_texts, option_faults, with_texts
from datagen.translation.texts import MAX_TOKENS, TEMPLATE_NAMES, Translator, check_lengths, load_checks
from engine.base.atomic import write_json
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.records import read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --lang CODE --data FILE --output DIR [flags]"
    parser.add_argument("--lang", required=True, metavar="CODE", help="the target language")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="files such as m_arc/en_test.json")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for m_arc/CODE_test.json etc."
    )
    parser.add_argument("--template", type=Path, default=TEMPLATE_FILE, metavar="FILE", help="the prompt (built in)")
    add_api_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(args: argparse.Namespace) -> None:
    language = get_language(args.lang)
    if language.code == "en":
        raise UserError("--lang en: the items are in English already; name another language")
    targets = {path: target_of(path, args.output, language.code) for path in args.data}
    check_targets(targets)
    translator = Translator(language, read_template(args.template, **TEMPLATE_NAMES), is_checked=not args.dry_run)
    records = read_items(args.data)
    if not args.dry_run:
        load_checks(language)
    print("\n".join(describe(records)), file=sys.stderr)
    # One run for all benchmarks: their rows share one file, one journal and one budget.
    args.output = args.output / f"{language.code}.rows.jsonl"
    summary = run_command(records, make_work(translator), args, lambda _: language.code, make_review(LengthRatios()))
    if summary is not None:
        print("\n".join(write_files(args.output, targets, Counter(record["file"] for record in records))))
    require_rows(summary, args.output)


def target_of(path: str, folder: Path, lang: str) -> Path:
    """Return the output path for FOLDER/en_PART.json. UserError for any other file name."""
    source = Path(path)
    name, dot, suffix = source.name.partition(".")
    if not name.startswith("en_") or suffix not in ("json", "jsonl", "jsonl.gz"):
        raise UserError(f"--data {path}: the name must be like m_arc/en_test.json: rename the file")
    return folder / source.absolute().parent.name / f"{lang}_{name.removeprefix('en_')}.json"


def check_targets(targets: Mapping[str, Path]) -> None:
    """Raise UserError if two inputs have the same target, or a target is itself an input."""
    taken: dict[Path, str] = {}
    for path, target in targets.items():
        if other := taken.get(target):
            raise UserError(f"--data {other} and {path} would both become {target}: put them into different folders")
        if Path(path).resolve() == target.resolve():
            raise UserError(f"--output: {target} is among --data: choose another folder")
        taken[target] = path


def read_items(paths: Sequence[str]) -> list[Record]:
    """Read records {file, item}. UserError with file, line and field for an item that fits no schema."""
    sources = read_sources(list(paths))
    for source in sources:
        check_item(source)
    return [{"file": source.path, "item": source.fields} for source in sources]


def describe(records: Sequence[Record]) -> list[str]:
    """Return console lines: items per file, and option faults in the English items."""
    lines = [f"{count:8,}  {path}" for path, count in Counter(record["file"] for record in records).items()]
    faults = Counter(fault.split(":")[0] for record in records for fault in option_faults(record["item"]))
    return lines + [f"{count:8,}  {fault} in English, kept unchanged" for fault, count in faults.items()]


def make_work(translator: Translator) -> Work:
    """Return the work function: it translates the item of a record {file, item}."""

    async def work(record: Record, ask: Ask) -> list[Record]:
        item: Item = record["item"]
        texts = item_texts(item)
        # Send equal texts once: TruthfulQA's two lists share choices, HellaSwag's ctx repeats ctx_a.
        field_of = {text: field for field, text in reversed(texts.items())}
        translated = await translator.translate({field: text for text, field in field_of.items()}, ask)
        new_item = with_texts(item, {field: translated[field_of[text]] for field, text in texts.items()})
        old_faults = option_faults(item)
        if new_faults := [fault for fault in option_faults(new_item) if fault not in old_faults]:
            raise Rejected(new_faults[0])
        return [{"file": record["file"], "item": new_item}]

    return work


def make_review(ratios: LengthRatios) -> Review:
    """Return the review: it checks lengths against those of earlier items."""

    def review(record: Record, rows: list[Record]) -> None:
        check_lengths(ratios, item_texts(record["item"]), item_texts(rows[0]["item"]))

    return review


def write_files(rows: Path, targets: Mapping[str, Path], wanted: Mapping[str, int]) -> list[str]:
    """Write the translated items to their files, as JSON lists. Returns console lines."""
    items: dict[str, list[Item]] = {path: [] for path in targets}
    if rows.stat().st_size:
        for _, row in read_records(rows):
            items[row["file"]].append(row["item"])
    lines = []
    for path, target in targets.items():
        if items[path]:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, items[path], indent=1)
        lines.append(f"{len(items[path]):8,} of {wanted[path]:,}  {target}")
    return lines
