"""`python -m datagen import`: published data of people as instruction and ranking records, filtered by language."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datagen.published import alpaca, aya, oasst, okapi, sharegpt
from datagen.sources import Source, check_outputs, check_surrogates
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.base.records import InstructionRecord, RankingRecord, read_records, write_jsonl

FORMATS = {"aya": aya, "oasst": oasst, "okapi": okapi, "alpaca": alpaca, "sharegpt": sharegpt}
_NO_FILE = "{} without a file: give --{}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s FORMAT FILE --lang CODE [--output FILE] [--rankings FILE]"
    parser.add_argument("format", choices=FORMATS, help="the format of the file")
    parser.add_argument("data", metavar="FILE", help="a .jsonl, .json (a list) or .jsonl.gz file")
    parser.add_argument("--lang", required=True, metavar="CODE", help="the language to keep")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instructions and conversations, for launch/sft.py")
    parser.add_argument("--rankings", type=Path, metavar="FILE", help="rankings, for launch/reward.py (oasst, okapi)")


def run(args: argparse.Namespace) -> None:
    language = get_language(args.lang)
    outputs = {f"--{name}": str(getattr(args, name)) for name in ("output", "rankings") if getattr(args, name)}
    if not outputs:
        raise UserError("there is no file to write: give --output, --rankings or both")
    check_outputs([args.data], outputs)
    instructions: list[InstructionRecord] = []
    rankings: list[RankingRecord] = []
    left_out: Counter[str] = Counter()
    seen: set[int] = set()
    for entry in FORMATS[args.format].read(_sources(args.data), language):
        if isinstance(entry, str):
            left_out[entry] += 1
            continue
        kept, name = (rankings, "rankings") if isinstance(entry, RankingRecord) else (instructions, "output")
        content = hash((name, entry.prompt, entry.output if name == "output" else (entry.responses, entry.ranks)))
        if not getattr(args, name):
            left_out[_NO_FILE.format("rankings" if kept is rankings else "instructions", name)] += 1
        elif content in seen:
            left_out["the same as an earlier one"] += 1
        else:
            kept.append(entry)
        seen.add(content)
    for path, records in ((args.output, instructions), (args.rankings, rankings)):
        if path and records:
            write_jsonl(path, _with_own_ids(records))
    print("\n".join(_table(args, instructions, rankings, left_out)))
    if not instructions and not rankings:
        raise UserError(f"{args.data} gives no records in {language.name}, and nothing was written: see the table")


def _sources(path: str) -> Iterator[Source]:
    """Yield the file's objects one by one, checked for texts that UTF-8 cannot hold."""
    for line, fields in read_records(path):
        source = Source(path, line, fields)
        check_surrogates(fields, source.where)
        yield source


def _with_own_ids(
    records: list[InstructionRecord] | list[RankingRecord],
) -> Iterator[InstructionRecord | RankingRecord]:
    """Yield the records such that no two have the same id: a repeated one gets a number."""
    taken: set[str] = set()
    for number, record in enumerate(records, 1):
        own = record if record.id not in taken else replace(record, id=f"{record.id}#{number}")
        taken.add(own.id)
        yield own


def _table(args: argparse.Namespace, instructions: list, rankings: list, left_out: Counter[str]) -> list[str]:
    """Return the counts of what was written and left out, as lines."""
    rows = [(len(kept), f"{what} in {path}") for kept, what, path in (
        (instructions, "instructions and conversations", args.output), (rankings, "rankings", args.rankings),
    ) if path]  # fmt: skip
    rows += [(count, f"left out: {reason}") for reason, count in left_out.most_common()]
    width = max(len(f"{count:,}") for count, _ in rows)
    return [f"  {count:>{width},}  {what}" for count, what in rows]
