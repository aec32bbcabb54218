"""The data of a real run: a kit's checkable tasks, and questions from Okapi's translated benchmarks.

What is measured on is never trained on: ARC's test and validation parts, a third of TruthfulQA, half of MMLU's
validation part, and the held-out tasks. Training records that share 13 words in a row with an ARC test question are
left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from datagen.decontaminate import Benchmarks
from datagen.embedded import CARELESS_SHARE, make_embedded
from engine.base.errors import UserError
from engine.base.records import read_instructions, write_jsonl
from evaluation.data.files import LocalData

Row = dict[str, Any]
TASKS = 4_000  # SFT records from the kit; two thirds as many prompts to rank answers to, and as many for PPO
INSTRUCTIONS = 1_500  # SFT records from the instruction file: long answers, which cost most of the time
OPTIONS = ("option_a", "option_b", "option_c", "option_d", "option_e")
TRAINED_FILES = ("sft", "ranking_prompts", "ranking_questions", "rl")


def make_data(
    lang: str, folder: Path, data_dir: Path | None, instructions: Path | None, careless_share: float = CARELESS_SHARE
) -> dict[str, int]:
    """Write the files of a run to the folder, and return {file: number of records}.

    sft                    tasks, some answered carelessly; half of ARC's training part, MMLU's dev part; instructions
    ranking_prompts        tasks whose answers by the SFT model are ranked (rank.py)
    ranking_questions      ranked answers to questions of TruthfulQA and MMLU
    rl                     prompts: tasks, and the other half of ARC's training questions
    heldout_tasks          600 checkable tasks
    heldout_questions      ARC's validation questions with their right answers
    ranking_heldout        ranked answers to other tasks, and the options of heldout_questions
    benchmarks/            what is evaluated on, in Okapi's layout

    Without `data_dir` there are tasks alone. UserError for a language without a kit, or a damaged file.
    """
    kit = make_embedded(lang, size=TASKS, careless_share=careless_share)
    rng = Random(f"{lang}/real")
    questions = _Questions(lang, data_dir, rng)
    tasks = {name: [_plain(row) for row in getattr(kit, name)] for name in ("sft", "rl", "heldout")}
    extra = _read_instructions(instructions, rng) if instructions else []
    files = {
        "sft": _shuffled([*tasks["sft"], *questions.sft, *extra[:INSTRUCTIONS]], rng),
        "ranking_prompts": [_with_best_answer(row) for row in kit.ranking],
        "ranking_questions": questions.rankings,
        "rl": _shuffled([*tasks["rl"], *questions.rl, *extra[INSTRUCTIONS : 2 * INSTRUCTIONS]], rng),
        "ranking_heldout": [*map(_plain, kit.ranking_heldout), *questions.heldout_rankings],
        "heldout_tasks": tasks["heldout"],
        "heldout_questions": questions.heldout,
    }
    overlaps = 0
    if questions.tests:
        benchmark = _write_benchmarks(folder / "benchmarks", questions.tests)
        files, overlaps = without_overlap(files, benchmark)
    for name, rows in files.items():
        if rows:
            write_jsonl(folder / f"{name}.jsonl", rows)
    return {**{name: len(rows) for name, rows in files.items()}, "left out: shares 13 words with ARC test": overlaps}


def without_overlap(files: dict[str, list[Row]], arc_test: Path) -> tuple[dict[str, list[Row]], int]:
    """Return the files without training records that share 13 words with ARC's test part, and how many they were."""
    index, kept, dropped = Benchmarks([str(arc_test)]), {}, 0
    questions = {row["instruction"] for row in json.loads(arc_test.read_text(encoding="utf-8"))}
    for name, rows in files.items():
        if name in TRAINED_FILES:
            clean = [r for r in rows if r["instruction"] not in questions and index.overlap(r) is None]
            dropped += len(rows) - len(clean)
            rows = clean
        kept[name] = rows
    return kept, dropped


class _Questions:
    """Questions of ARC, MMLU and TruthfulQA, split into what trains and what measures. Empty without a folder."""

    def __init__(self, lang: str, data_dir: Path | None, rng: Random):
        self.sft: list[Row] = []
        self.rl: list[Row] = []
        self.rankings: list[Row] = []
        self.heldout: list[Row] = []
        self.heldout_rankings: list[Row] = []
        self.tests: dict[str, list[Row]] = {}
        if data_dir is None:
            return
        self.data, self.lang = LocalData(data_dir), lang
        arc = _shuffled(self._read("m_arc", "train"), rng)
        half = len(arc) // 2
        self.sft = [row for record in [*arc[:half], *self._read("m_mmlu", "dev")] for row in _answered(record)]
        self.rl = [row for record in arc[half:] for row in _answered(record)]
        mmlu = _shuffled(self._read("m_mmlu", "validation"), rng)
        truthful = _shuffled(self._read("m_truthfulqa", "validation"), rng)
        half, third = len(mmlu) // 2, len(truthful) // 3
        self.rankings = [row for record in mmlu[half:] for row in _ranked(record)]
        self.rankings += [row for i, record in enumerate(truthful[third:]) for row in _ranked_truthful(record, i)]
        validation = self._read("m_arc", "validation")
        self.heldout = [row for record in validation for row in _answered(record)]
        self.heldout_rankings = [row for record in validation for row in _ranked(record)]
        self.tests = {
            f"m_arc/{lang}_test.json": self._read("m_arc", "test"),
            f"m_mmlu/{lang}_test.json": mmlu[:half],
            f"m_truthfulqa/{lang}_validation.json": truthful[:third],
        }

    def _read(self, folder: str, part: str) -> list[Row]:
        return [row for _, row in self.data.read(folder, self.lang, part).rows]


def _options(record: Row) -> tuple[str, list[str]] | None:
    """Return (right option, wrong options), or None for a record whose options are empty or equal."""
    options = {name[-1].upper(): record[name].strip() for name in OPTIONS if record.get(name)}
    right = options.pop(record["answer"].strip().upper(), "")
    wrong = list(dict.fromkeys(text for text in options.values() if text and text != right))
    return (right, wrong) if right and wrong and record["instruction"].strip() else None


def _answered(record: Row) -> Iterator[Row]:
    if (options := _options(record)) is not None:
        yield {"id": record["id"], "instruction": record["instruction"].strip(), "input": "", "output": options[0]}


def _ranked(record: Row) -> Iterator[Row]:
    if (options := _options(record)) is not None:
        yield _ranking(record["id"], record["instruction"], [options[0]], options[1])


def _ranked_truthful(record: Row, index: int) -> Iterator[Row]:
    answers = [
        (text.strip(), label) for text, label in zip(record["mc2_targets_choices"], record["mc2_targets_labels"])
    ]
    right = list(dict.fromkeys(text for text, label in answers if label and text))
    wrong = list(dict.fromkeys(text for text, label in answers if not label and text and text not in right))
    if right and wrong and record["question"].strip():
        yield _ranking(f"truthfulqa/{index}", record["question"], right, wrong)


def _ranking(name: str, question: str, right: Sequence[str], wrong: Sequence[str]) -> Row:
    ranks = [1] * len(right) + [2] * len(wrong)
    return {"id": name, "instruction": question.strip(), "input": "", "responses": [*right, *wrong], "ranks": ranks}


def _read_instructions(path: Path, rng: Random) -> list[Row]:
    rows = [
        {
            "id": f"instruction/{record.id}",
            "instruction": record.instruction,
            "input": record.input,
            "output": record.output,
        }
        for record in read_instructions(path, on_bad_record=lambda _: None)
    ]
    if not rows:
        raise UserError(f"{path} has no instruction records")
    return _shuffled(rows, rng)


def _write_benchmarks(folder: Path, tests: dict[str, list[Row]]) -> Path:
    """Write the files, and return the one of ARC."""
    for name, rows in tests.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return next(folder / name for name in tests if name.startswith("m_arc"))


def _with_best_answer(row: Row) -> Row:
    """Return the prompt of a ranking with its best answer as output."""
    best = row["responses"][row["ranks"].index(1)]
    return {**{name: row[name] for name in ("id", "instruction", "input")}, "output": best}


def _plain(row: Row) -> Row:
    """Return the row without the kind of its task."""
    return {name: value for name, value in row.items() if name != "kind"}


def _shuffled(rows: Sequence[Row], rng: Random) -> list[Row]:
    rows = list(rows)
    rng.shuffle(rows)
    return rows
