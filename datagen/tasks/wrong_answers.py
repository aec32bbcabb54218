"""Make wrong answers in three grades: near misses, far answers of the right type, and off-task answers.

Near misses are mistakes that small language models make: off by one, a neighbour in the list, the wrong direction, two
items swapped, an item lost or repeated, the question's own word, a typo.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import NamedTuple

from datagen.kits import Kit, load_kit
from datagen.tasks.kinds import MAX_NUMBER, Task, Value, check

_FEW = 3
_MANY = 12  # more candidates than near misses, so some are left after the near misses are excluded
_SILENCE = ("", ".", "…", "?", "-")


class WrongAnswers(NamedTuple):
    """Wrong answers as text, each grade in random order. No text is right and none occurs twice."""

    near: list[str]
    far: list[str]
    off_task: list[str]


def wrong_answers(kit: Kit, task: Task, other: Task, rng: Random) -> WrongAnswers:
    """Return wrong answers to a task. The answer of `other` is an off-task one if it has another type.

    At least one near, one far, three near and far together, and three off-task answers.
    """
    taken = {unicodedata.normalize("NFC", task.output)}
    near = _fresh(kit, task, _near(kit, task, rng), taken, rng)
    far = _fresh(kit, task, _far(kit, task, rng), taken, rng)
    off_task = _fresh(kit, task, _off_task(kit, task, other, near, rng), taken, rng)
    assert near and far and len(near) + len(far) >= 3 and len(off_task) >= 3, task
    return WrongAnswers(near, far, off_task)


def _fresh(kit: Kit, task: Task, values: Iterable[Value], taken: set[str], rng: Random) -> list[str]:
    """Return the new wrong answers among `values` as text, shuffled, and add them to `taken`. Skip negative numbers."""
    fresh: list[str] = []
    for value in values:
        if isinstance(value, int) and value < 0:
            continue
        shown = unicodedata.normalize("NFC", kit.show(value))
        if shown not in taken and not check({"output": task.output}, shown):
            taken.add(shown)
            fresh.append(shown)
    rng.shuffle(fresh)
    return fresh


def _near(kit: Kit, task: Task, rng: Random) -> list[Value]:
    if task.kind in _NEAR_WORDS:
        return _NEAR_WORDS[task.kind](kit, task, rng)
    if isinstance(task.answer, int):
        return _near_numbers(task)
    assert isinstance(task.answer, tuple), task
    return _near_lists(task, rng)


def _near_numbers(task: Task) -> list[Value]:
    answer = task.answer
    near: list[Value] = [answer + difference for difference in (-10, -2, -1, 1, 2, 10)]
    for argument in task.arguments:
        near += [item for item in (argument if isinstance(argument, tuple) else (argument,)) if isinstance(item, int)]
    if task.kind in ("add", "subtract"):
        a, b = task.arguments
        near.append(abs(a - b) if task.kind == "add" else a + b)
    return near


def _near_lists(task: Task, rng: Random) -> list[Value]:
    answer = task.answer
    return [*_list_errors(answer, rng), answer[::-1], *task.arguments]


def _list_errors(items: tuple, rng: Random) -> list[tuple]:
    """Return three versions of two or more items: two neighbours swapped, one lost, one repeated over the next."""
    i, lost, twice = rng.randrange(len(items) - 1), rng.randrange(len(items)), rng.randrange(len(items) - 1)
    return [
        (*items[:i], items[i + 1], items[i], *items[i + 2 :]),
        (*items[:lost], *items[lost + 1 :]),
        (*items[: twice + 1], items[twice], *items[twice + 2 :]),
    ]


def _typo(word: str, rng: Random) -> str:
    """Return the word with one letter doubled, lost, or swapped with the next."""
    letters = _letters(word)
    i, j = rng.randrange(len(letters)), rng.randrange(max(1, len(letters) - 1))
    doubled = letters[: i + 1] + letters[i:]
    if len(letters) == 1:
        return "".join(doubled)
    lost = letters[:i] + letters[i + 1 :]
    swapped = letters[:j] + letters[j : j + 2][::-1] + letters[j + 2 :]
    return "".join(rng.choice([doubled, lost, swapped]))


def _letters(word: str) -> list[str]:
    """Split a word into characters, each with the combining marks and joiners after it."""
    letters: list[str] = []
    for character in word:
        if letters and unicodedata.category(character)[0] in "MC":
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def _near_in_cycle(row: tuple[str, ...], task: Task) -> list[Value]:
    at = row.index(task.answer)
    return [*task.arguments, *(row[(at + steps) % len(row)] for steps in (-2, -1, 1, 2))]


def _near_number_words(kit: Kit, task: Task, rng: Random) -> list[Value]:
    (n,) = task.arguments
    around = [kit.numbers[m] for m in (n - 10, n - 1, n + 1, n + 10) if 0 <= m < len(kit.numbers)]
    return [*around, n, _typo(task.answer, rng)]


def _near_text(kit: Kit, task: Task, rng: Random) -> list[Value]:
    text = task.answer
    space = " " if " " in text else ""
    units = tuple(text.split() if space else text)
    slips = [space.join(slip) for slip in _list_errors(units, rng)]
    return [*slips, space.join(units[:-1]), _typo(text, rng)]


def _near_even_or_odd(kit: Kit, task: Task, rng: Random) -> list[Value]:
    return [kit.even, kit.odd]


def _near_days(kit: Kit, task: Task, rng: Random) -> list[Value]:
    return _near_in_cycle(kit.days, task)


def _near_months(kit: Kit, task: Task, rng: Random) -> list[Value]:
    return _near_in_cycle(kit.months, task)


def _near_opposite(kit: Kit, task: Task, rng: Random) -> list[Value]:
    return [*task.arguments, _typo(task.answer, rng)]


def _near_category(kit: Kit, task: Task, rng: Random) -> list[Value]:
    return rng.sample(list(kit.categories), _FEW + 1)


def _near_items(kit: Kit, task: Task, rng: Random) -> list[Value]:
    (words,) = task.arguments
    return [*words, _typo(task.answer, rng)]


# The kinds with a word or text as answer.
_NEAR_WORDS: Mapping[str, Callable[[Kit, Task, Random], list[Value]]] = {
    "number_to_word": _near_number_words,
    "even_or_odd": _near_even_or_odd,
    "day_after": _near_days,
    "day_before": _near_days,
    "month_after": _near_months,
    "month_before": _near_months,
    "opposite": _near_opposite,
    "category": _near_category,
    "odd_one_out": _near_items,
    "copy": _near_text,
    "first_item": _near_items,
    "last_item": _near_items,
}


def _far(kit: Kit, task: Task, rng: Random) -> list[Value]:
    kind, answer = task.kind, task.answer
    if isinstance(answer, int):
        return rng.sample(range(2 * MAX_NUMBER), _MANY)
    if kind in ("sort_up", "sort_down"):
        return [tuple(rng.sample(range(MAX_NUMBER + 1), len(answer))) for _ in range(_FEW)]
    if kind == "reverse":
        return [tuple(rng.sample(kit.words, len(answer))) for _ in range(_FEW)]
    if kind == "even_or_odd":
        (n,) = task.arguments
        return [n, n + 1, rng.choice(kit.numbers), *rng.choice(kit.opposites)]
    if kind == "category":
        return [*task.arguments, *rng.sample(kit.categories[answer], _FEW)]
    if kind == "copy":
        return [*rng.sample(kit.texts, _FEW), kit.show(tuple(rng.sample(kit.words, _FEW)))]
    if kind == "opposite":
        return rng.sample(list(kit.opposite_of), _FEW + 1)
    if kind == "number_to_word":
        return rng.sample(kit.numbers, _MANY)
    if kind.startswith("day"):
        return list(kit.days)
    if kind.startswith("month"):
        return list(kit.months)
    return rng.sample(kit.words, _MANY)


def _off_task(kit: Kit, task: Task, other: Task, near: list[str], rng: Random) -> list[Value]:
    """Return another question's answer, the question, a foreign word, the answer inside other text, an empty answer."""
    foreign = load_kit("ne" if kit.code == "en" else "en")
    buried = rng.choice(
        [
            f"{task.output} {rng.choice(near)} {rng.choice(near)}",
            kit.show((task.output,) * _FEW),
            f"{task.output} {task.instruction}",
        ]
    )
    off_task = [task.instruction, rng.choice(foreign.words), buried, rng.choice(_SILENCE)]
    if task.input:
        off_task.append(task.input)
    if _answer_type(task) != _answer_type(other):
        off_task.append(other.output)
    return off_task


def _answer_type(task: Task) -> str:
    """Return the type of a task's answer. Answers of one type look alike, so they are not off-task for each other."""
    if isinstance(task.answer, int):
        return "digits"
    if task.kind in ("first_item", "last_item", "odd_one_out"):
        return "word"
    return task.kind.split("_")[0]  # day, month, sort: both directions
