"""Tests of wrong answers: never right, never repeated, and of the stated grade."""

from __future__ import annotations

from random import Random

import pytest

from datagen.kits import kit_codes, load_kit
from datagen.tasks.kinds import KINDS, all_tasks, check, draw_task, is_finite, make_task
from datagen.tasks.wrong_answers import wrong_answers


def _wrong(kind, arguments, seed=0, other=("copy", ("It rained all night.",))):
    kit = load_kit("en")
    return wrong_answers(kit, make_task(kit, kind, arguments, 2), make_task(kit, *other, 0), Random(seed))


@pytest.mark.parametrize("code", kit_codes())
def test_wrong_answers_are_wrong_distinct_and_enough(code):
    kit, rng = load_kit(code), Random(7)
    tasks = []
    for kind in KINDS:
        tasks += rng.sample(all_tasks(kit, kind), 25) if is_finite(kind) else []
        tasks += [] if is_finite(kind) else [draw_task(kit, kind, rng) for _ in range(25)]
    for task in tasks:
        wrong = wrong_answers(kit, task, rng.choice(tasks), rng)
        texts = [*wrong.near, *wrong.far, *wrong.off_task]
        assert not any(check({"output": task.output}, text) for text in texts)
        assert len(set(texts)) == len(texts)
        assert wrong.near and wrong.far
        assert len(wrong.near) + len(wrong.far) >= 3
        assert len(wrong.off_task) >= 3


NEAR = [
    ("add", (9, 4), {"12", "14", "5", "9", "4"}),
    ("subtract", (9, 4), {"4", "6", "13"}),
    ("next_number", (7,), {"7", "6", "9"}),
    ("largest", ((3, 9, 5),), {"3", "5", "8", "10"}),
    ("sequence", ((2, 4, 6),), {"6", "7", "9"}),
    ("number_to_word", (11,), {"ten", "twelve", "one", "twenty-one", "11"}),
    ("day_after", ("Monday",), {"Monday", "Sunday", "Wednesday"}),
    ("day_before", ("Monday",), {"Monday", "Tuesday", "Saturday"}),
    ("month_after", ("January",), {"January", "December", "March"}),
    ("even_or_odd", (4,), {"odd"}),
    ("opposite", ("hot",), {"hot"}),
    ("odd_one_out", (("dog", "cat", "apple", "cow"),), {"dog", "cat", "cow"}),
    ("first_item", (("bed", "car", "tea"),), {"car", "tea"}),
    ("sort_up", ((5, 1, 9),), {"5, 1, 9", "9, 5, 1"}),
    ("reverse", (("bed", "car", "tea"),), {"bed, car, tea"}),
]


@pytest.mark.parametrize(("kind", "arguments", "expected"), NEAR)
def test_near_misses_by_hand(kind, arguments, expected):
    assert expected <= set(_wrong(kind, arguments).near)


def test_far_numbers_are_more_than_two_away():
    for seed in range(50):
        assert all(abs(int(text) - 13) > 2 for text in _wrong("add", (9, 4), seed).far)


def test_far_answers_to_category_are_words_not_categories():
    kit = load_kit("en")
    wrong = _wrong("category", ("banana",))
    assert set(wrong.near) < set(kit.categories)
    assert set(wrong.far) <= {*kit.categories["fruits"]}


def test_off_task_contains_the_question_and_another_answer():
    wrong = _wrong("add", (9, 4))
    assert "Calculate the sum of 9 and 4." in wrong.off_task
    assert "It rained all night." in wrong.off_task


def test_answer_of_the_same_type_is_not_off_task():
    assert "28" not in _wrong("add", (9, 4), other=("subtract", (30, 2))).off_task


def test_off_task_contains_buried_foreign_and_empty_answers():
    buried, foreign, silent = 0, 0, 0
    words = set(load_kit("ne").words)
    for seed in range(40):
        off_task = _wrong("opposite", ("hot",), seed).off_task
        buried += any(text.startswith("cold") for text in off_task)
        foreign += bool(words & set(off_task))
        silent += bool({"", ".", "…", "?", "-"} & set(off_task))
    assert buried == foreign == silent == 40


def test_no_wrong_answer_is_the_right_one_with_an_extra_sentence():
    """A right answer with an extra sentence is a grade of its own in the rankings, above every wrong answer."""
    texts = load_kit("en").texts
    for seed in range(60):
        wrong = _wrong("opposite", ("hot",), seed)
        answers = {*wrong.near, *wrong.far, *wrong.off_task}
        assert not answers & {f"cold{space}{text}" for text in texts for space in " \n"}


def test_typo_keeps_marks_with_their_letters():
    kit = load_kit("ne")
    task = make_task(kit, "opposite", ("सानो",), 0)
    slips = {text for seed in range(60) for text in wrong_answers(kit, task, task, Random(seed)).near}
    assert slips == {"सानो", "ठूठूलो", "ठूलोलो", "ठू", "लो", "लोठू"}
