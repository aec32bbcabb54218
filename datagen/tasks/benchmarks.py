"""Write the embedded tasks as multiple choice, in Okapi's schemas m_arc, m_hellaswag, m_mmlu and m_truthfulqa."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from datagen.kits import Kit
from datagen.tasks.kinds import KINDS, Task
from datagen.tasks.splits import draw_split
from datagen.tasks.wrong_answers import wrong_answers

ARC_SIZES = {"train": 200, "validation": 100, "test": 300}
MMLU_SIZES = {"dev": 5, "val": 10, "test": 45}  # per subject; few-shot prompts use the five of dev
HELLASWAG_SIZE = 300
TRUTHFULQA_SIZE = 300

MMLU_SUBJECTS = {
    "arithmetic": ("add", "subtract", "next_number", "previous_number", "sequence", "even_or_odd"),
    "numerals": ("number_to_word", "word_to_number", "count_items"),
    "ordering": ("largest", "smallest", "sort_up", "sort_down"),
    "calendar": ("day_after", "day_before", "month_after", "month_before"),
    "vocabulary": ("opposite", "category", "odd_one_out"),
    "lists": ("copy", "first_item", "last_item", "reverse"),
}
assert sorted(kind for kinds in MMLU_SUBJECTS.values() for kind in kinds) == sorted(KINDS)

Item = dict[str, Any]


def make_benchmarks(kit: Kit, seed: int) -> dict[str, list[Item]]:
    """Return file name ("m_arc/ne_test.json") -> items. No item of a benchmark occurs in two of its files."""
    files: dict[str, list[Item]] = {}

    def draw(stream: str, sizes: dict[str, int], kinds: Iterable[str] = KINDS) -> Iterator[tuple[str, int, Task, list]]:
        """Yield part, number in the part, task, and wrong answers with near misses first, for one benchmark."""
        stream = f"{seed}/{stream}"
        rng = Random(f"{kit.code}/{stream}/wrong")
        tasks = draw_split(kit, "benchmarks", sum(sizes.values()), kinds, stream)
        remaining = iter(tasks)
        for part, size in sizes.items():
            for number, task in zip(range(size), remaining):
                wrong = wrong_answers(kit, task, rng.choice(tasks), rng)
                yield part, number, task, wrong.near + wrong.far

    def add(benchmark: str, part: str, item: Item) -> None:
        files.setdefault(f"{benchmark}/{kit.code}_{part}.json", []).append(item)

    rng = Random(f"{kit.code}/{seed}/benchmarks/places")
    for part, number, task, wrong in draw("m_arc", ARC_SIZES):
        add("m_arc", part, {"id": f"embedded/{part}/{number}", **_four_options(task, wrong, rng)})
    for subject, kinds in MMLU_SUBJECTS.items():
        for part, number, task, wrong in draw(f"m_mmlu/{subject}", MMLU_SIZES, kinds):
            add("m_mmlu", part, {"id": f"{subject}/{part}/{number}", **_four_options(task, wrong, rng)})
    for part, number, task, wrong in draw("m_hellaswag", {"validation": HELLASWAG_SIZE}):
        add("m_hellaswag", part, _endings(number, task, wrong, rng))
    for part, _, task, wrong in draw("m_truthfulqa", {"validation": TRUTHFULQA_SIZE}):
        add("m_truthfulqa", part, _targets(task, wrong))
    return files


def _question(task: Task) -> str:
    return f"{task.instruction}\n{task.input}" if task.input else task.instruction


def _choices(task: Task, wrong: list[str], rng: Random) -> tuple[list[str], int]:
    """Return four choices in random order and the index of the right one."""
    choices = [task.output, *wrong[:3]]
    rng.shuffle(choices)
    return choices, choices.index(task.output)


def _four_options(task: Task, wrong: list[str], rng: Random) -> Item:
    choices, right = _choices(task, wrong, rng)
    options = {f"option_{letter}": choice for letter, choice in zip("abcd", choices)}
    return {"answer": "ABCD"[right], "instruction": _question(task), **options, "kind": task.kind}


def _endings(number: int, task: Task, wrong: list[str], rng: Random) -> Item:
    choices, right = _choices(task, wrong, rng)
    context = _question(task)
    return {
        "ind": number,
        "activity_label": task.kind,
        "ctx": context,
        "ctx_a": context,
        "ctx_b": "",
        "endings": choices,
        "label": str(right),
        "id": str(number),
        "kind": task.kind,
    }


def _targets(task: Task, wrong: list[str]) -> Item:
    """Put the right choice first, as TruthfulQA does. mc2 has up to two wrong choices more than mc1."""
    mc1, mc2 = [task.output, *wrong[:3]], [task.output, *wrong[:5]]
    return {
        "question": _question(task),
        "mc1_targets_choices": mc1,
        "mc2_targets_choices": mc2,
        "mc1_targets_labels": [1] + [0] * (len(mc1) - 1),
        "mc2_targets_labels": [1] + [0] * (len(mc2) - 1),
        "kind": task.kind,
    }
