"""`python -m datagen rank`: rank a model's responses to each prompt with another model, the judge.

The dialog has two turns. The first translates the prompt and its responses into English, the judge's best language. The
second ranks the translations. English records need only the second. The order shown is a shuffle seeded by the content.
Rows are ranking records {id, instruction, input, responses, ranks} with `lang`, `shown` (the response at each position)
and, for a sample, `ranks_again` (the ranks when shown in reverse order, null if that failed).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datagen.api.chat import Ask, Message, Record, Rejected, content_hash
from datagen.api.settings import add_api_arguments
from datagen.ranking.format import MAX_RESPONSES, labels, parse_ranking, ranks_of_responses, show_order
from datagen.ranking.report import RankReport
from datagen.run.command import require_rows, run_command, run_files
from datagen.run.prompt_templates import TEMPLATES_DIR, read_template
from datagen.sources import Source, check_outputs, read_sources
from datagen.text.language_faults import script_fault
from datagen.translation.texts import MAX_TOKENS, fault_of_object, parse_object
from engine.base.errors import UserError
from engine.base.languages import LANGUAGES, Language, get_language
from engine.base.records import write_jsonl

RANK_TEMPLATE_FILE = TEMPLATES_DIR / "rank.txt"
TRANSLATE_TEMPLATE_FILE = TEMPLATES_DIR / "rank_translate.txt"
RANK_NAMES, TRANSLATE_NAMES = ("ids", "record"), ("language", "record")
_TEMPERATURE = 0.0  # the judge's most likely ranking
_TRANSLATED_BEFORE = "The instruction and the responses are those of the JSON object that you have just written."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --lang CODE --data FILE --output FILE [flags]"
    parser.add_argument("--lang", required=True, metavar="CODE", help="the language of the responses")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="written by launch/sample.py")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the rankings, for launch/reward.py")
    parser.add_argument("--rerank-share", type=float, default=0.05, metavar="X", help="share to rank twice (0.05)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for the orders and that sample (0)")
    parser.add_argument("--unranked", metavar="FILE", help="records with only ties (OUTPUT.unranked.jsonl)")
    parser.add_argument("--report", metavar="FILE", help="biases and agreement (OUTPUT.report.jsonl)")
    parser.add_argument("--template", type=Path, default=RANK_TEMPLATE_FILE, metavar="FILE", help="turn 2 (built in)")
    parser.add_argument("--translate-template", type=Path, default=TRANSLATE_TEMPLATE_FILE, metavar="FILE",
                        help="turn 1 (built in)")  # fmt: skip
    add_api_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(args: argparse.Namespace) -> None:
    language = get_language(args.lang)
    if not 0 <= args.rerank_share <= 1:
        raise UserError(f"--rerank-share {args.rerank_share} must be from 0 to 1")
    files = run_files(args)
    unranked_path = args.unranked or f"{args.output}.unranked.jsonl"
    report_path = args.report or f"{args.output}.report.jsonl"
    outputs = {"--output": str(args.output), "--unranked": unranked_path, "--report": report_path}
    check_outputs([*args.data, str(files.journal), str(files.quarantine)], outputs)
    rank_template = read_template(args.template, RANK_NAMES)
    translate_template = read_template(args.translate_template, TRANSLATE_NAMES, flag="--translate-template")
    judge = Judge(language, rank_template, translate_template, args.seed, args.rerank_share, not args.dry_run)
    verdicts = Verdicts()
    records = verdicts.drop_identical(read_responses(args.data, language))
    summary = None
    try:
        summary = run_command(records, judge.rank, args, lambda _: language.code, verdicts.review)
    finally:
        # Also after a run that stopped early: the output contains the rows ranked so far.
        if summary is not None or verdicts.report.records:
            verdicts.write(unranked_path, report_path)
            print("\n".join(verdicts.lines(unranked_path)), file=sys.stderr)
    require_rows(summary, args.output)


def read_responses(paths: Sequence[str], language: Language) -> list[Record]:
    """Read records of launch/sample.py and add `lang`. UserError with file, line and field for any other record."""
    return [_read(source, number, language) for number, source in enumerate(read_sources(paths), 1)]


def _read(source: Source, number: int, language: Language) -> Record:
    texts = {"instruction": source.text("instruction"), "input": source.text("input", "")}
    responses = source.fields.get("responses")
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise UserError(f"{source.where}: field 'responses' is {responses!r:.60}: it must be a list of strings")
    if not 2 <= len(responses) <= MAX_RESPONSES:
        limits = f"give 2 to {MAX_RESPONSES}"
        raise UserError(f"{source.where}: field 'responses' has {len(responses)}: {limits}, or drop the record")
    return {"id": source.fields.get("id", str(number)), **texts, "responses": responses, "lang": language.code}


@dataclass(frozen=True)
class Judge:
    """Ranks the responses of a record with a chat model.

    rank_template, translate_template   templates with the names RANK_NAMES and TRANSLATE_NAMES
    rerank_share                        share of the records to rank twice, drawn by seed and content
    is_checked                          False for a dry run: it counts the second turn whatever the simulator answers
    """

    language: Language
    rank_template: string.Template
    translate_template: string.Template
    seed: int = 0
    rerank_share: float = 0.0
    is_checked: bool = True

    async def rank(self, record: Record, ask: Ask) -> list[Record]:
        """Return one row for a record of `read_responses` (see the top of this file). This is the work function."""
        content = record["instruction"], record["input"], record["responses"]
        shown = show_order(*content, self.seed)
        row = {**record, "ranks": await self._ranks(record, shown, ask), "shown": shown}
        draw = int.from_bytes(content_hash(["again", self.seed, *content]), "big") / 2**128
        if draw < self.rerank_share:
            try:
                row["ranks_again"] = await self._ranks(record, shown[::-1], ask)
            except Rejected:
                row["ranks_again"] = None
        return [row]

    async def _ranks(self, record: Record, shown: Sequence[int], ask: Ask) -> list[int]:
        responses = record["responses"]
        names = labels(len(shown))
        texts = {name: record[name] for name in ("instruction", "input") if record[name]}
        asked = {**texts, "responses": {name: responses[k] for name, k in zip(names, shown)}}
        shown_json = json.dumps(asked, ensure_ascii=False, indent=1)
        dialog: list[Message] = []
        if self.language.code != "en":
            prompt = self.translate_template.substitute(language=self.language.name, record=shown_json)
            dialog.append({"role": "user", "content": prompt})
            reply = await ask([*dialog], temperature=_TEMPERATURE)
            if self.is_checked and (fault := _fault_of_translation(parse_object(reply), asked)):
                raise Rejected(f"turn 1: {fault}", reply)
            dialog.append({"role": "assistant", "content": reply.text})
            shown_json = _TRANSLATED_BEFORE
        prompt = self.rank_template.substitute(ids=", ".join(names), record=shown_json)
        reply = await ask([*dialog, {"role": "user", "content": prompt}], temperature=_TEMPERATURE)
        if reply.fault:
            raise Rejected(f"turn 2: {reply.fault}", reply)
        try:
            ranks = parse_ranking(reply.text, len(shown))
        except ValueError as error:
            raise Rejected(f"turn 2: ranking: {error}", reply) from None
        return ranks_of_responses(shown, ranks, responses)


def _fault_of_translation(answer: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """Return the fault of turn 1, or None: wrong keys, missing or added texts, or too few English letters."""
    if not isinstance(answer.get("responses"), dict):
        return "keys: missing 'responses'"
    texts, expected = _flat(answer), _flat(asked)
    return fault_of_object(texts, expected) or script_fault(" ".join(texts[name] for name in expected), LANGUAGES["en"])


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in record.items() if name != "responses"}
    return others | {f"responses {name}": value for name, value in record["responses"].items()}


@dataclass
class Verdicts:
    """Separates records without a usable ranking (all responses equal or tied) and collects the report."""

    report: RankReport = field(default_factory=RankReport)
    unranked: list[Record] = field(default_factory=list)

    def drop_identical(self, records: Sequence[Record]) -> list[Record]:
        """Return the records to rank, without those where all responses are equal."""
        same = [len(set(record["responses"])) == 1 for record in records]
        self.unranked += [{**r, "reason": "all responses are the same"} for r, is_same in zip(records, same) if is_same]
        return [record for record, is_same in zip(records, same) if not is_same]

    def review(self, record: Record, rows: list[Record]) -> None:
        """Count a row in the report. Remove it from the list if all its responses tie."""
        self.report.add(rows[0])
        if len(set(rows[0]["ranks"])) == 1:
            self.unranked.append({**rows.pop(), "reason": "all responses tie"})

    def write(self, unranked_path: str, report_path: str) -> None:
        """Write the report and the unranked records; without unranked records, only delete the old file."""
        Path(unranked_path).unlink(missing_ok=True)
        if self.unranked:
            write_jsonl(unranked_path, self.unranked)
        write_jsonl(report_path, [dataclasses.asdict(self.report)])

    def lines(self, unranked_path: str) -> list[str]:
        """Return the report as console lines."""
        unranked = [f"{len(self.unranked):,} records with only ties: {unranked_path}"] if self.unranked else []
        return self.report.lines() + unranked
