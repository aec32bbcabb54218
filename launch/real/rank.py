"""Rank the SFT model's own answers to tasks by their checks: `python -m launch.real.rank DATA`.

In Okapi a judge ranks K answers that the SFT model sampled. For tasks with checkable answers the check is the judge.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.base.records import read_instructions, read_records, write_jsonl
from engine.training.exact_match import canonical
from engine.training.heldout import checked

Row = dict[str, Any]
MOST_WRONG = 4  # wrong answers in a ranking
SAMPLES = "ranking_samples.jsonl"


def rank_samples(samples: Iterable[Row], expected: dict[str, str]) -> list[Row]:
    """Return a ranking for each prompt with samples that are not right.

    Ranks: 1 the right answer, even where no sample found it; 2 one sample that begins with it and goes on; 3 up to
    MOST_WRONG wrong samples. Equal answers count once.
    """
    rankings = []
    for row in samples:
        right = canonical(expected[row["id"]])
        texts = dict.fromkeys(canonical(text) for text in row["responses"])
        checks = {text: checked(text, right) for text in texts if text}
        longer = [text for text, check in checks.items() if check["right_then_more"]][:1]
        wrong = [text for text, check in checks.items() if not any(check.values())][:MOST_WRONG]
        if longer or wrong:
            ranks = [1] + [2] * len(longer) + [3] * len(wrong)
            same = {name: row[name] for name in ("id", "instruction", "input")}
            rankings.append({**same, "responses": [right, *longer, *wrong], "ranks": ranks})
    return rankings


def write_halves(folder: Path) -> tuple[int, int]:
    """Write ranking_a.jsonl and ranking_b.jsonl, halves of the ranked samples and questions. Return their sizes."""
    expected = {record.id: record.output for record in read_instructions(folder / "ranking_prompts.jsonl")}
    tasks = rank_samples((row for _, row in read_records(folder / SAMPLES)), expected)
    questions = folder / "ranking_questions.jsonl"
    rows = [*tasks, *(row for _, row in read_records(questions))] if questions.is_file() else tasks
    Random("rankings").shuffle(rows)
    write_jsonl(folder / "ranking_a.jsonl", rows[::2])
    write_jsonl(folder / "ranking_b.jsonl", rows[1::2])
    return len(rows[::2]), len(rows[1::2])


def main(argv: Sequence[str]) -> None:
    """Write the halves of the folder that the command line names, and print their sizes."""
    print("rankings: {} for reward model A, {} for B".format(*write_halves(Path(argv[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
