"""Simulated instructions: numbered tasks, from the English kit and from random words, with a few bad ones."""

from __future__ import annotations

import re
from random import Random

from datagen.kits import Kit, load_kit
from datagen.self_instruct.task_format import Task, format_tasks
from datagen.tasks.kinds import KINDS, all_tasks, draw_task, is_finite

_DEFAULT_COUNT = 20
_BAD_SHARE = 0.05  # tasks that the filters must drop: too short, about a picture, a bad first character

_ACTIONS = (
    *("Describe", "Compare", "Explain the use of", "Write two sentences about", "Give advice to somebody who needs"),
    *("List three facts about", "Make a short poem on", "Tell a child something about", "Suggest a title for"),
    *("Invent a riddle whose answer is", "Summarize what most people know about", "Plan an afternoon around"),
)
_TURNS = (
    *("in plain words", "for a school newspaper", "without using the letter x", "as a letter to a friend"),
    *("in one short paragraph", "with an example from daily life", "and say what surprises you", "in a cheerful tone"),
    *("for somebody who is in a hurry", "and end with a question", "from the view of a teacher", "using a metaphor"),
)
_BAD = ("Draw", "Look at the picture of it", "#1 name the three largest cities", "Write a program that sorts a list")


def make_instructions(prompt: str, rng: Random) -> str:
    """Return tasks in the format of `task_format`, with the last numbers in the prompt, such as "numbers 4 to 23"."""
    kit = load_kit("en")
    asked = re.findall(r"\bnumbers (\d+) to (\d+)\b", prompt)
    first, last = map(int, asked[-1]) if asked else (1, _DEFAULT_COUNT)
    return format_tasks((_task(kit, rng) for _ in range(first, last + 1)), first)


def _task(kit: Kit, rng: Random) -> Task:
    draw = rng.random()
    if draw < _BAD_SHARE:
        return Task(rng.choice(_BAD), "", rng.choice(kit.texts))
    if draw < 0.5:
        kind = rng.choice(KINDS)
        task = rng.choice(all_tasks(kit, kind)) if is_finite(kind) else draw_task(kit, kind, rng)
        return Task(task.instruction, task.input, task.output)
    things = " and ".join(rng.sample(kit.words, rng.randint(1, 2)))
    instruction = f"{rng.choice(_ACTIONS)} {things} {rng.choice(_TURNS)}."
    return Task(instruction, "", " ".join(rng.sample(kit.texts, rng.randint(1, 3))))
