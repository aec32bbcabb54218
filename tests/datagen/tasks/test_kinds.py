"""Tests of tasks: answers of every kind by hand in English, and recomputed from the prompt in every language."""

from __future__ import annotations

import re
from random import Random

import pytest

from datagen.kits import kit_codes, load_kit
from datagen.kits.rules import PLACEHOLDERS
from datagen.tasks.kinds import KINDS, all_tasks, check, draw_task, is_finite, make_task

# Kind, arguments, arguments as shown in the prompt, answer; computed by hand.
BY_HAND = [
    ("add", (17, 8), ("17", "8"), "25"),
    ("subtract", (21, 4), ("21", "4"), "17"),
    ("number_to_word", (21,), ("21",), "twenty-one"),
    ("word_to_number", ("twelve",), ("twelve",), "12"),
    ("next_number", (29,), ("29",), "30"),
    ("previous_number", (30,), ("30",), "29"),
    ("largest", ((7, 30, 4),), ("7, 30, 4",), "30"),
    ("smallest", ((7, 30, 4),), ("7, 30, 4",), "4"),
    ("sort_up", ((7, 30, 4, 10),), ("7, 30, 4, 10",), "4, 7, 10, 30"),
    ("sort_down", ((7, 30, 4, 10),), ("7, 30, 4, 10",), "30, 10, 7, 4"),
    ("sequence", ((3, 8, 13),), ("3, 8, 13",), "18"),
    ("even_or_odd", (0,), ("0",), "even"),
    ("even_or_odd", (13,), ("13",), "odd"),
    ("day_after", ("Sunday",), ("Sunday",), "Monday"),
    ("day_before", ("Monday",), ("Monday",), "Sunday"),
    ("month_after", ("December",), ("December",), "January"),
    ("month_before", ("May",), ("May",), "April"),
    ("opposite", ("cold",), ("cold",), "hot"),
    ("category", ("banana",), ("banana",), "fruits"),
    ("odd_one_out", (("dog", "cat", "apple", "cow"),), ("dog, cat, apple, cow",), "apple"),
    ("count_items", (("dog", "apple"),), ("dog, apple",), "2"),
    ("copy", ("It rained all night.",), ("It rained all night.",), "It rained all night."),
    ("first_item", (("bed", "car", "tea"),), ("bed, car, tea",), "bed"),
    ("last_item", (("bed", "car", "tea"),), ("bed, car, tea",), "tea"),
    ("reverse", (("bed", "car", "tea"),), ("bed, car, tea",), "tea, car, bed"),
]


@pytest.mark.parametrize(("kind", "arguments", "shown", "output"), BY_HAND)
def test_answers_by_hand(kind, arguments, shown, output):
    kit = load_kit("en")
    for phrasing, template in enumerate(kit.templates[kind]):
        task = make_task(kit, kind, arguments, phrasing)
        assert task.output == output
        prompt = "\n".join(template)
        for name, text in zip(PLACEHOLDERS[kind], shown):
            prompt = prompt.replace("{" + name + "}", text)
        assert (task.instruction + "\n" + task.input) == prompt


def test_every_kind_has_an_answer_by_hand():
    assert {kind for kind, *_ in BY_HAND} == set(KINDS)


def test_nepali_tasks_use_nepali_digits():
    kit = load_kit("ne")
    task = make_task(kit, "add", (17, 8), 1)
    assert (task.instruction, task.output) == ("१७ + ८ कति हुन्छ?", "२५")
    assert make_task(kit, "sort_up", ((20, 3),), 0).output == "३, २०"


RECOMPUTED = {
    "add": lambda numbers: [sum(numbers)],
    "subtract": lambda numbers: [max(numbers) - min(numbers)],
    "next_number": lambda numbers: [numbers[0] + 1],
    "previous_number": lambda numbers: [numbers[0] - 1],
    "largest": lambda numbers: [sorted(numbers)[-1]],
    "smallest": lambda numbers: [sorted(numbers)[0]],
    "sort_up": sorted,
    "sort_down": lambda numbers: sorted(numbers)[::-1],
    "sequence": lambda numbers: [numbers[-1] + (numbers[1] - numbers[0])],
}


def _tasks(kit, kind, count, rng):
    if is_finite(kind):
        return rng.sample(all_tasks(kit, kind), count)
    return [draw_task(kit, kind, rng) for _ in range(count)]


@pytest.mark.parametrize("code", kit_codes())
def test_answer_recomputed_from_the_numbers_of_the_prompt(code):
    kit = load_kit(code)
    for kind, recompute in RECOMPUTED.items():
        for drawn in _tasks(kit, kind, 30, Random(1)):
            for phrasing, template in enumerate(kit.templates[kind]):
                task = make_task(kit, kind, drawn.arguments, phrasing)
                prompt = _numerals(task.instruction + " " + task.input)
                for number in _numerals(" ".join(template)):  # "one more" may be written "1 more"
                    prompt.remove(number)
                assert recompute(prompt) == _numerals(task.output), task


def _numerals(text):
    return [int(number) for number in re.findall(r"\d+", text)]  # int() reads every script's digits


@pytest.mark.parametrize("code", kit_codes())
def test_every_language_has_5000_distinct_prompts(code):
    kit, rng, prompts = load_kit(code), Random(0), set()
    for kind in KINDS:
        tasks = all_tasks(kit, kind) if is_finite(kind) else [draw_task(kit, kind, rng) for _ in range(500)]
        prompts |= {(task.instruction, task.input) for task in tasks}
    assert len(prompts) >= 5_000


@pytest.mark.parametrize("code", kit_codes())
def test_lists_have_distinct_items_and_one_odd_one_out(code):
    kit, rng = load_kit(code), Random(2)
    for kind in ("odd_one_out", "count_items", "first_item", "last_item", "reverse", "largest", "sort_up"):
        for task in _tasks(kit, kind, 20, rng):
            (items,) = task.arguments
            assert len(set(items)) == len(items)
    for task in _tasks(kit, "odd_one_out", 20, rng):
        groups = [kit.category_of[word] for word in task.arguments[0]]
        assert sorted(map(groups.count, groups)) == [1, 3, 3, 3]
        assert groups.count(kit.category_of[task.output]) == 1


def test_numbers_stay_small():
    kit, rng = load_kit("en"), Random(3)
    for kind in ("add", "subtract", "sort_up"):
        for task in _tasks(kit, kind, 300, rng):
            numbers = [int(number) for number in re.findall(r"\d+", f"{task.instruction} {task.input} {task.output}")]
            assert max(numbers) <= 30


def test_check_ignores_only_white_space_and_normalisation():
    record = {"output": "caf\u00e9"}
    assert check(record, "  cafe\u0301\n")
    for wrong in ("caf\u00e9 caf\u00e9", "Caf\u00e9", "cafe", "", "caf\u00e9."):
        assert not check(record, wrong)
