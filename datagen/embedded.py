"""Make the embedded data of a language from its kit: instructions, RL prompts, rankings, held-out sets, benchmarks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from datagen.kits import Kit, load_kit
from datagen.tasks.benchmarks import make_benchmarks
from datagen.tasks.kinds import KINDS, Task
from datagen.tasks.splits import TRAINING_SPLITS, draw_split
from datagen.tasks.wrong_answers import wrong_answers
from engine.base.atomic import write_text
from engine.base.errors import UserError
from engine.base.records import write_jsonl

DEFAULT_SIZE = 6_000
HELDOUT_SIZE = 600
RANKING_HELDOUT_SIZE = 400
TIE_SHARE = 0.1
# Share of careless SFT answers: the right answer, then an unneeded sentence, as in scraped and translated data. Only
# the rankings show that people prefer the bare answer, so this is what PPO has to teach.
CARELESS_SHARE = 0.5

Row = dict[str, Any]


@dataclass(frozen=True)
class EmbeddedData:
    """The contents of the files of the same names. Each row has an extra field `kind`.

    sft, rl, heldout          instruction records; in rl the output is only for reference
    ranking, ranking_heldout  ranking records with four responses
    benchmarks                file name, such as "m_arc/ne_test.json" -> its items
    """

    lang: str
    seed: int
    sft: list[Row]
    rl: list[Row]
    ranking: list[Row]
    ranking_heldout: list[Row]
    heldout: list[Row]
    benchmarks: dict[str, list[Row]]

    def corpus(self) -> Iterator[str]:
        """Yield all texts of the training splits, to train a tokenizer on."""
        for split in TRAINING_SPLITS:
            for row in getattr(self, split):
                texts = (row["instruction"], row["input"], row.get("output", ""), *row.get("responses", ()))
                yield from (text for text in texts if text)


def make_embedded(
    lang: str, seed: int = 0, size: int = DEFAULT_SIZE, careless_share: float = CARELESS_SHARE
) -> EmbeddedData:
    """Make `size` SFT records, two thirds as many RL prompts and rankings, and held-out sets of fixed size.

    `careless_share` of the SFT answers are careless. Equal arguments give equal data, in every process. UserError for a
    language without a valid kit, or a size too small to include every kind of task.
    """
    smallest = 2 * len(KINDS)
    if size < smallest:
        raise UserError(f"--size {size} leaves kinds of tasks out: pass at least {smallest}")
    kit = load_kit(lang)
    sizes = {"sft": size, "rl": size * 2 // 3, "heldout": HELDOUT_SIZE}
    ranking_sizes = {"ranking": size * 2 // 3, "ranking_heldout": RANKING_HELDOUT_SIZE}
    return EmbeddedData(
        lang=lang,
        seed=seed,
        **{split: _instruction_rows(kit, split, count, seed, careless_share) for split, count in sizes.items()},
        **{split: _ranking_rows(kit, split, count, seed) for split, count in ranking_sizes.items()},
        benchmarks=make_benchmarks(kit, seed),
    )


def _instruction_rows(kit: Kit, split: str, count: int, seed: int, careless_share: float) -> list[Row]:
    tasks = draw_split(kit, split, count, KINDS, f"{seed}/{split}")
    rng = Random(f"{kit.code}/{seed}/{split}/answers")
    rows = []
    for index, task in enumerate(tasks):
        careless = split == "sft" and rng.random() < careless_share
        output = _careless(kit, task.output, rng) if careless else task.output
        rows.append({**_prompt(kit, split, index, task), "output": output, "kind": task.kind})
    return rows


def _careless(kit: Kit, answer: str, rng: Random) -> str:
    """Return the answer with an unneeded sentence after it."""
    return f"{answer}\n{rng.choice(kit.texts)}"


def _ranking_rows(kit: Kit, split: str, count: int, seed: int) -> list[Row]:
    tasks = draw_split(kit, split, count, KINDS, f"{seed}/{split}")
    rng = Random(f"{kit.code}/{seed}/{split}/responses")
    rows = []
    for index, task in enumerate(tasks):
        responses, ranks = _rank_responses(kit, task, rng.choice(tasks), rng)
        row = {**_prompt(kit, split, index, task), "responses": responses, "ranks": ranks, "kind": task.kind}
        rows.append(row)
    return rows


def _prompt(kit: Kit, split: str, index: int, task: Task) -> Row:
    return {"id": f"{kit.code}/{split}/{index}", "instruction": task.instruction, "input": task.input}


def _rank_responses(kit: Kit, task: Task, other: Task, rng: Random) -> tuple[list[str], list[int]]:
    """Return four responses in random order and their ranks.

    The grades, best first: right; right but careless; wrong but near; wrong and either careless, far or off-task.

    A careless answer ranks below the same answer alone, right or wrong, so neither quality predicts the other.

    In TIE_SHARE of the rankings, two responses share one grade (a tie) and another grade, never the first, is left out.
    """
    wrong = wrong_answers(kit, task, other, rng)
    careless = [_careless(kit, answer, rng) for answer in (task.output, task.output, wrong.near[-1], wrong.near[-1])]
    worst = rng.choice([careless[2:], careless[2:], wrong.far, wrong.off_task])
    grades = [[task.output, task.output], careless[:2], wrong.near, worst]
    taken = [1, 1, 1, 1]
    if rng.random() < TIE_SHARE:
        twice = rng.choice([grade for grade in range(4) if len(grades[grade]) > 1])
        taken[twice] = 2
        taken[rng.choice([grade for grade in (1, 2, 3) if grade != twice])] = 0
    graded = [answers[:number] for answers, number in zip(grades, taken) if number]
    ranked = [(answer, rank) for rank, answers in enumerate(graded, start=1) for answer in answers]
    rng.shuffle(ranked)
    return [answer for answer, _ in ranked], [rank for _, rank in ranked]


def write_embedded(data: EmbeddedData, folder: Path, overwrite: bool = False) -> dict[str, int]:
    """Write all files of the data to the folder and return file name -> number of records. Each write is atomic.

    UserError if the folder is not empty and `overwrite` is False: files of other settings could be mixed in.
    """
    check_output_folder(folder, overwrite)
    counts = {}
    for split in ("sft", "rl", "ranking", "ranking_heldout", "heldout"):
        rows = getattr(data, split)
        write_jsonl(folder / f"{split}.jsonl", rows)
        counts[f"{split}.jsonl"] = len(rows)
    lines = list(data.corpus())
    _write_text(folder / "corpus.txt", "\n".join(lines) + "\n")
    counts["corpus.txt"] = len(lines)
    for name, items in data.benchmarks.items():
        _write_text(folder / "benchmarks" / name, json.dumps(items, ensure_ascii=False, indent=1) + "\n")
        counts[f"benchmarks/{name}"] = len(items)
    return counts


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Raise UserError if the folder is a file, or is not empty and `overwrite` is False."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: pass a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"--output {folder} is not empty: pass another folder, or --overwrite to replace its files")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m datagen embedded`."""
    parser.add_argument("--lang", required=True, metavar="CODE", help="language, such as ne")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, metavar="N", help=f"SFT records ({DEFAULT_SIZE})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seeds draw other tasks (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a folder that is not empty")


def run(args: argparse.Namespace) -> None:
    """Make and write the data, and print the number of records in each file."""
    check_output_folder(args.output, args.overwrite)
    counts = write_embedded(make_embedded(args.lang, args.seed, args.size), args.output, args.overwrite)
    for name, count in counts.items():
        print(f"{count:>8,}  {args.output / name}")
