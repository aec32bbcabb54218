"""Measure a reward model on ranked answers: `python launch/judge.py --reward DIR --data FILE`.

Prints the share of pairs in the right order, by category and language, with 95 % intervals over prompts; ties; and how
much the order follows length. Reads rankings, and M-RewardBench's records.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.atomic import write_json
from engine.base.records import fields_of, read_rankings, read_records
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.distributed.world import start_world
from engine.settings import flag
from engine.training.heldout import Estimate
from engine.training.scorers import check_reward
from launch.score import ScorerSettings, ScoreSettings, chosen

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(ScorerSettings):
    """What judges, and what it is compared with."""

    _argument_group_name = "judge"
    reward: str = flag("reward model directory, or module:function of (prompt, response) -> float")
    data: str = flag(
        "rankings as launch/reward.py reads them, such as {instruction, input, responses, ranks} or {prompt, chosen, "
        "rejected}; each may have category and language"
    )
    output: str | None = flag("file for the numbers, .json (default: only printed)", None)


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to a prompt."""

    margin: float  # score of the better one minus score of the worse one
    longer: int  # characters of the better one minus those of the worse one

    @property
    def right(self) -> float:
        """1 if the better one has the higher score, 1/2 if both have the same."""
        return 0.5 + 0.5 * _sign(self.margin)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rankings of a file as launch/score.py takes them, with ranks, category and language.

    UserError, with the line, for a record that is no ranking.
    """
    return [
        {**fields_of(ranking), "finished": [True] * len(ranking.responses)}
        | {name: str(record.get(name) or ALL) for name in ("category", "language")}
        for ranking, (_, record) in zip(read_rankings(path), read_records(path), strict=True)
    ]


def pairs_of(row: Mapping[str, Any], scores: Sequence[float]) -> list[Pair]:
    """Return the pairs of answers with different ranks."""
    found = []
    for a, b in combinations(range(len(scores)), 2):
        if row["ranks"][a] != row["ranks"][b]:
            better, worse = (a, b) if row["ranks"][a] < row["ranks"][b] else (b, a)
            longer = len(row["responses"][better]) - len(row["responses"][worse])
            found.append(Pair(scores[better] - scores[worse], longer))
    return found


def numbers_of(pairs_P: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Return the measures of some prompts' pairs; shares of pairs, None where there are none.

    accuracy, half     pairs in the right order, equal scores count half; half of the 95 % interval over prompts
    ties               pairs with equal scores
    if_longer, if_shorter   accuracy where the better answer is the longer one, and where it is the shorter one
    longer, prefers_longer  the better answer is the longer one; the one with the higher score is
    """
    pairs_P = [pairs for pairs in pairs_P if pairs]
    pairs = [pair for of_prompt in pairs_P for pair in of_prompt]
    accuracy = Estimate.of_ratio([sum(p.right for p in ps) for ps in pairs_P], [len(ps) for ps in pairs_P])
    unequal = [p for p in pairs if p.longer]

    def share(count: Callable[[Pair], float], among: Sequence[Pair]) -> float | None:
        return sum(map(count, among)) / len(among) if among else None

    return {
        "prompts": len(pairs_P),
        "pairs": len(pairs),
        "accuracy": accuracy.mean,
        "half": accuracy.half if len(pairs_P) > 1 else None,
        "ties": share(lambda p: p.margin == 0, pairs),
        "if_longer": share(lambda p: p.right, [p for p in pairs if p.longer > 0]),
        "if_shorter": share(lambda p: p.right, [p for p in pairs if p.longer < 0]),
        "longer": share(lambda p: p.longer > 0, unequal),
        "prefers_longer": share(lambda p: 0.5 + 0.5 * _sign(p.margin) * _sign(p.longer), unequal),
    }


def groups(rows: Sequence[Mapping[str, Any]], pairs_P: Sequence[Sequence[Pair]]) -> Iterator[tuple[str, dict]]:
    """Yield (name, measures) of each category, each language, and all; a field that no record has gives no group."""
    for field in ("category", "language"):
        for name in sorted({row[field] for row in rows} - {ALL}):
            chosen_P = [pairs for row, pairs in zip(rows, pairs_P) if row[field] == name]
            if any(chosen_P):
                yield f"{field} {name}", numbers_of(chosen_P)
    yield ALL, numbers_of(pairs_P)


def job(argv: Sequence[str]) -> None:
    """Score every answer, print the tables, and write the numbers."""
    (s,) = parse_settings((JudgeSettings,), argv, "python launch/judge.py", __doc__.split("\n")[0])
    check_reward(s.reward)
    rows = read_rows(Path(s.data))
    how = {field.name: getattr(s, field.name) for field in fields(ScorerSettings)}
    score = ScoreSettings(reward=s.reward, data=s.data, output="", **how)
    scores = chosen(score)(score, rows, start_world(600.0).device)
    measured = dict(groups(rows, [pairs_of(row, values) for row, values in zip(rows, scores)]))
    console = Console()
    head = ["", "prompts", "pairs", "in the right order, %", "ties, %", "better is longer, %", "better is shorter, %"]
    console.table(head, [
        [name, f"{x['prompts']:,}", f"{x['pairs']:,}", _percent(x["accuracy"], x["half"]),
         *(_percent(x[key]) for key in ("ties", "if_longer", "if_shorter"))]
        for name, x in measured.items()
    ])  # fmt: skip
    x = measured[ALL]
    by_category = [numbers["accuracy"] for name, numbers in measured.items() if name.startswith("category ")]
    if by_category:
        console.say(f"\n  mean over categories: {100 * sum(by_category) / len(by_category):.1f} %")
    console.say(
        f"\n  length: the better answer is the longer one in {_percent(x['longer'])} % of the pairs, the one with the "
        f"higher score in {_percent(x['prefers_longer'])} %"
    )
    if s.output:
        write_json(Path(s.output), measured)
        console.say(f"  numbers: {s.output}")


def _percent(share: float | None, half: float | None = None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


if __name__ == "__main__":
    main(job)
