"""Tasks with checkable answers: each kind draws its arguments from a kit, fills a phrasing and computes the answer.

Numbers stay small and lists short, so that a transformer of a few layers learns every kind within minutes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from datagen.kits import Kit
from datagen.kits.rules import PLACEHOLDERS

# A number, a word or text, or a list of either: shown to the reader by Kit.show.
Value = int | str | tuple[int | str, ...]
Arguments = tuple[Value, ...]

MAX_NUMBER = 30  # of addition, subtraction and lists: the number words end there too
MAX_COUNTED = 99  # of counting and even-or-odd


@dataclass(frozen=True)
class Task:
    """One task: `arguments` in the order of PLACEHOLDERS[kind], the prompt, and `answer`, whose shown form is right."""

    kind: str
    arguments: Arguments
    instruction: str
    input: str
    answer: Value
    output: str


@dataclass(frozen=True)
class _Kind:
    """How arguments come about, and what the right answer to them is.

    all_arguments lists every possible one for a kind that has few (finite); draw gives a random one for the others.
    """

    answer: Callable[..., Value]  # of the kit and the arguments, one by one
    all_arguments: Callable[[Kit], Iterable[Arguments]] | None = None
    draw: Callable[[Kit, Random], Arguments] | None = None


def is_finite(kind: str) -> bool:
    """Whether `all_tasks` can list the kind: it has few arguments, as the seven days."""
    return _KINDS[kind].all_arguments is not None


def make_task(kit: Kit, kind: str, arguments: Arguments, phrasing: int) -> Task:
    """The task of these arguments in one of the kit's phrasings."""
    instruction, input = kit.templates[kind][phrasing]
    for name, value in zip(PLACEHOLDERS[kind], arguments):
        shown = kit.show(value)
        instruction, input = instruction.replace(f"{{{name}}}", shown), input.replace(f"{{{name}}}", shown)
    answer = _KINDS[kind].answer(kit, *arguments)
    return Task(kind, arguments, instruction, input, answer, kit.show(answer))


def all_tasks(kit: Kit, kind: str) -> list[Task]:
    """Every task of a finite kind: each of its arguments in each phrasing."""
    all_arguments = _KINDS[kind].all_arguments
    assert all_arguments is not None, kind
    phrasings = range(len(kit.templates[kind]))
    return [make_task(kit, kind, arguments, phrasing) for arguments in all_arguments(kit) for phrasing in phrasings]


def draw_task(kit: Kit, kind: str, rng: Random) -> Task:
    """A random task of a kind that is not finite, in a random phrasing."""
    draw = _KINDS[kind].draw
    assert draw is not None, kind
    return make_task(kit, kind, draw(kit, rng), rng.randrange(len(kit.templates[kind])))


def check(record: Mapping[str, Any], answer_text: str) -> bool:
    """Whether the text is the record's `output`, up to white space at the ends and Unicode normalisation (NFC)."""
    return _normal(answer_text) == _normal(record["output"])


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _each(values: Iterable[Value]) -> list[Arguments]:
    return [(value,) for value in values]


def _addends(kit: Kit, rng: Random) -> Arguments:
    a = rng.randint(0, 20)
    return a, rng.randint(0, min(20, MAX_NUMBER - a))


def _subtrahends(kit: Kit, rng: Random) -> Arguments:
    a = rng.randint(0, MAX_NUMBER)
    return a, rng.randint(0, a)


def _numbers(kit: Kit, rng: Random) -> Arguments:
    return (tuple(rng.sample(range(MAX_NUMBER + 1), rng.randint(3, 4))),)


def _words(low: int, high: int) -> Callable[[Kit, Random], Arguments]:
    return lambda kit, rng: (tuple(rng.sample(kit.words, rng.randint(low, high))),)


def _three_and_a_stranger(kit: Kit, rng: Random) -> Arguments:
    group, other = rng.sample(list(kit.categories), 2)
    words = [*rng.sample(kit.categories[group], 3), rng.choice(kit.categories[other])]
    rng.shuffle(words)
    return (tuple(words),)


def _stranger(kit: Kit, words: tuple[str, ...]) -> str:
    groups = [kit.category_of[word] for word in words]
    return next(word for word, group in zip(words, groups) if groups.count(group) == 1)


def _text(kit: Kit, rng: Random) -> Arguments:
    """A sentence or a few words: sentences alone would be too few to hold some out."""
    if rng.random() < 0.5:
        return (rng.choice(kit.texts),)
    return (kit.show(tuple(rng.sample(kit.words, rng.randint(2, 4)))),)


def _all_sequences(kit: Kit) -> list[Arguments]:
    return [((a, a + step, a + 2 * step),) for a in range(21) for step in range(1, 6)]


def _after(names: tuple[str, ...], name: str, steps: int) -> str:
    return names[(names.index(name) + steps) % len(names)]


_KINDS: dict[str, _Kind] = {
    "add": _Kind(lambda kit, a, b: a + b, draw=_addends),
    "subtract": _Kind(lambda kit, a, b: a - b, draw=_subtrahends),
    "number_to_word": _Kind(lambda kit, n: kit.numbers[n], lambda kit: _each(range(MAX_NUMBER + 1))),
    "word_to_number": _Kind(lambda kit, word: kit.numbers.index(word), lambda kit: _each(kit.numbers)),
    "next_number": _Kind(lambda kit, n: n + 1, lambda kit: _each(range(MAX_COUNTED))),
    "previous_number": _Kind(lambda kit, n: n - 1, lambda kit: _each(range(1, MAX_COUNTED + 1))),
    "largest": _Kind(lambda kit, numbers: max(numbers), draw=_numbers),
    "smallest": _Kind(lambda kit, numbers: min(numbers), draw=_numbers),
    "sort_up": _Kind(lambda kit, numbers: tuple(sorted(numbers)), draw=_numbers),
    "sort_down": _Kind(lambda kit, numbers: tuple(sorted(numbers, reverse=True)), draw=_numbers),
    "sequence": _Kind(lambda kit, terms: 2 * terms[2] - terms[1], _all_sequences),
    "even_or_odd": _Kind(lambda kit, n: kit.odd if n % 2 else kit.even, lambda kit: _each(range(MAX_COUNTED + 1))),
    "day_after": _Kind(lambda kit, day: _after(kit.days, day, 1), lambda kit: _each(kit.days)),
    "day_before": _Kind(lambda kit, day: _after(kit.days, day, -1), lambda kit: _each(kit.days)),
    "month_after": _Kind(lambda kit, month: _after(kit.months, month, 1), lambda kit: _each(kit.months)),
    "month_before": _Kind(lambda kit, month: _after(kit.months, month, -1), lambda kit: _each(kit.months)),
    "opposite": _Kind(lambda kit, word: kit.opposite_of[word], lambda kit: _each(kit.opposite_of)),
    "category": _Kind(lambda kit, word: kit.category_of[word], lambda kit: _each(kit.words)),
    "odd_one_out": _Kind(_stranger, draw=_three_and_a_stranger),
    "count_items": _Kind(lambda kit, words: len(words), draw=_words(2, 6)),
    "copy": _Kind(lambda kit, text: text, draw=_text),
    "first_item": _Kind(lambda kit, words: words[0], draw=_words(3, 5)),
    "last_item": _Kind(lambda kit, words: words[-1], draw=_words(3, 5)),
    "reverse": _Kind(lambda kit, words: words[::-1], draw=_words(3, 4)),
}
assert list(_KINDS) == list(PLACEHOLDERS)
KINDS = tuple(_KINDS)
