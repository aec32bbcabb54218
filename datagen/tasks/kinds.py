"""Make tasks with checkable answers: draw a kind's arguments from a kit, fill a phrasing, compute the answer.

Numbers are small and lists short, so a transformer of a few layers learns every kind within minutes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from datagen.kits import Kit
from datagen.kits.rules import PLACEHOLDERS

# A number, a word or text, or a list of either. Kit.show turns it into text.
Value = int | str | tuple[int | str, ...]
Arguments = tuple[Value, ...]

MAX_NUMBER = 30  # in addition, subtraction and lists; the kits' number words end here
MAX_COUNTED = 99  # in counting and even-or-odd


@dataclass(frozen=True)
class Task:
    """One task: `arguments` in the order of PLACEHOLDERS[kind], the prompt, the answer, and the answer as text."""

    kind: str
    arguments: Arguments
    instruction: str
    input: str
    answer: Value
    output: str


@dataclass(frozen=True)
class _Kind:
    """How to make the arguments and the answer of a kind of task.

    answer         kit, *arguments -> the right answer
    all_arguments  kit -> all possible arguments; for finite kinds only
    draw           kit, rng -> random arguments; for all other kinds
    """

    answer: Callable[..., Value]
    all_arguments: Callable[[Kit], Iterable[Arguments]] | None = None
    draw: Callable[[Kit, Random], Arguments] | None = None


def is_finite(kind: str) -> bool:
    """Whether the kind has so few arguments that `all_tasks` can list its tasks, like the seven days."""
    return _KINDS[kind].all_arguments is not None


def make_task(kit: Kit, kind: str, arguments: Arguments, phrasing: int) -> Task:
    """Return the task with these arguments in the kit's phrasing number `phrasing`."""
    instruction, input = kit.templates[kind][phrasing]
    for name, value in zip(PLACEHOLDERS[kind], arguments):
        shown = kit.show(value)
        instruction, input = instruction.replace(f"{{{name}}}", shown), input.replace(f"{{{name}}}", shown)
    answer = _KINDS[kind].answer(kit, *arguments)
    return Task(kind, arguments, instruction, input, answer, kit.show(answer))


def all_tasks(kit: Kit, kind: str) -> list[Task]:
    """Return every task of a finite kind: all arguments in all phrasings."""
    all_arguments = _KINDS[kind].all_arguments
    assert all_arguments is not None, kind
    phrasings = range(len(kit.templates[kind]))
    return [make_task(kit, kind, arguments, phrasing) for arguments in all_arguments(kit) for phrasing in phrasings]


def draw_task(kit: Kit, kind: str, rng: Random) -> Task:
    """Return a random task, in a random phrasing, of a kind that is not finite."""
    draw = _KINDS[kind].draw
    assert draw is not None, kind
    return make_task(kit, kind, draw(kit, rng), rng.randrange(len(kit.templates[kind])))


def check(record: Mapping[str, Any], answer_text: str) -> bool:
    """Whether the text equals the record's `output`, up to outer white space and Unicode normalisation (NFC)."""
    return _normal(answer_text) == _normal(record["output"])


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _each(values: Iterable[Value]) -> list[Arguments]:
    return [(value,) for value in values]


def _draw_addends(kit: Kit, rng: Random) -> Arguments:
    a = rng.randint(0, 20)
    return a, rng.randint(0, min(20, MAX_NUMBER - a))


def _draw_subtraction(kit: Kit, rng: Random) -> Arguments:
    a = rng.randint(0, MAX_NUMBER)
    return a, rng.randint(0, a)


def _draw_numbers(kit: Kit, rng: Random) -> Arguments:
    return (tuple(rng.sample(range(MAX_NUMBER + 1), rng.randint(3, 4))),)


def _draw_words(low: int, high: int) -> Callable[[Kit, Random], Arguments]:
    return lambda kit, rng: (tuple(rng.sample(kit.words, rng.randint(low, high))),)


def _draw_odd_one_out(kit: Kit, rng: Random) -> Arguments:
    group, other = rng.sample(list(kit.categories), 2)
    words = [*rng.sample(kit.categories[group], 3), rng.choice(kit.categories[other])]
    rng.shuffle(words)
    return (tuple(words),)


def _odd_one_out(kit: Kit, words: tuple[str, ...]) -> str:
    groups = [kit.category_of[word] for word in words]
    return next(word for word, group in zip(words, groups) if groups.count(group) == 1)


def _draw_text(kit: Kit, rng: Random) -> Arguments:
    """Draw a sentence or a few words. The sentences alone are too few to hold some out."""
    if rng.random() < 0.5:
        return (rng.choice(kit.texts),)
    return (kit.show(tuple(rng.sample(kit.words, rng.randint(2, 4)))),)


def _all_sequences(kit: Kit) -> list[Arguments]:
    return [((a, a + step, a + 2 * step),) for a in range(21) for step in range(1, 6)]


def _step(names: tuple[str, ...], name: str, steps: int) -> str:
    """Return the name `steps` places later in the cycle."""
    return names[(names.index(name) + steps) % len(names)]


_KINDS: dict[str, _Kind] = {
    "add": _Kind(lambda kit, a, b: a + b, draw=_draw_addends),
    "subtract": _Kind(lambda kit, a, b: a - b, draw=_draw_subtraction),
    "number_to_word": _Kind(lambda kit, n: kit.numbers[n], lambda kit: _each(range(MAX_NUMBER + 1))),
    "word_to_number": _Kind(lambda kit, word: kit.numbers.index(word), lambda kit: _each(kit.numbers)),
    "next_number": _Kind(lambda kit, n: n + 1, lambda kit: _each(range(MAX_COUNTED))),
    "previous_number": _Kind(lambda kit, n: n - 1, lambda kit: _each(range(1, MAX_COUNTED + 1))),
    "largest": _Kind(lambda kit, numbers: max(numbers), draw=_draw_numbers),
    "smallest": _Kind(lambda kit, numbers: min(numbers), draw=_draw_numbers),
    "sort_up": _Kind(lambda kit, numbers: tuple(sorted(numbers)), draw=_draw_numbers),
    "sort_down": _Kind(lambda kit, numbers: tuple(sorted(numbers, reverse=True)), draw=_draw_numbers),
    "sequence": _Kind(lambda kit, terms: 2 * terms[2] - terms[1], _all_sequences),
    "even_or_odd": _Kind(lambda kit, n: kit.odd if n % 2 else kit.even, lambda kit: _each(range(MAX_COUNTED + 1))),
    "day_after": _Kind(lambda kit, day: _step(kit.days, day, 1), lambda kit: _each(kit.days)),
    "day_before": _Kind(lambda kit, day: _step(kit.days, day, -1), lambda kit: _each(kit.days)),
    "month_after": _Kind(lambda kit, month: _step(kit.months, month, 1), lambda kit: _each(kit.months)),
    "month_before": _Kind(lambda kit, month: _step(kit.months, month, -1), lambda kit: _each(kit.months)),
    "opposite": _Kind(lambda kit, word: kit.opposite_of[word], lambda kit: _each(kit.opposite_of)),
    "category": _Kind(lambda kit, word: kit.category_of[word], lambda kit: _each(kit.words)),
    "odd_one_out": _Kind(_odd_one_out, draw=_draw_odd_one_out),
    "count_items": _Kind(lambda kit, words: len(words), draw=_draw_words(2, 6)),
    "copy": _Kind(lambda kit, text: text, draw=_draw_text),
    "first_item": _Kind(lambda kit, words: words[0], draw=_draw_words(3, 5)),
    "last_item": _Kind(lambda kit, words: words[-1], draw=_draw_words(3, 5)),
    "reverse": _Kind(lambda kit, words: words[::-1], draw=_draw_words(3, 4)),
}
assert list(_KINDS) == list(PLACEHOLDERS)
KINDS = tuple(_KINDS)
