"""Instructions as a model would invent them: numbered tasks of the English kit and free ones, with a few bad ones."""

from __future__ import annotations

import re
from random import Random

from datagen.kits import Kit, load_kit
from datagen.tasks import KINDS, all_tasks, draw_task, is_finite

_DEFAULT_COUNT = 20
_BAD_SHARE = 0.05  # that the filters are there for: too short, about a picture, beginning with a number

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
    """As many tasks as the prompt asks for, in the numbered form that its examples have."""
    kit = load_kit("en")
    shown = [int(number) for number in re.findall(r"^(\d+)\. Instruction:", prompt, re.MULTILINE)]
    first = max(shown, default=0) + (0 if prompt.rstrip().endswith("Instruction:") else 1)
    asked = re.search(r"\b(\d+) (?:\w+ ){0,3}(?:tasks|instructions)\b", prompt)
    last = max(int(asked[1]) if asked else _DEFAULT_COUNT, first)
    blocks = []
    for number in range(first, last + 1):
        instruction, input, output = _task(kit, rng)
        lines = (f"{number}. Instruction: {instruction}", f"{number}. Input:", input or "<noinput>")
        blocks.append("\n".join((*lines, f"{number}. Output:", output)))
    return "\n###\n".join(blocks)


def _task(kit: Kit, rng: Random) -> tuple[str, str, str]:
    draw = rng.random()
    if draw < _BAD_SHARE:
        return rng.choice(_BAD), "", rng.choice(kit.texts)
    if draw < 0.5:
        kind = rng.choice(KINDS)
        task = rng.choice(all_tasks(kit, kind)) if is_finite(kind) else draw_task(kit, kind, rng)
        return task.instruction, task.input, task.output
    things = " and ".join(rng.sample(kit.words, rng.randint(1, 2)))
    instruction = f"{rng.choice(_ACTIONS)} {things} {rng.choice(_TURNS)}."
    return instruction, "", " ".join(rng.sample(kit.texts, rng.randint(1, 3)))
