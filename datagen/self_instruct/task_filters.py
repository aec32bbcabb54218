"""Which generated tasks are worth keeping, before any comparison: the rules that Alpaca applied, each with its reason.

The rules are those of Self-Instruct (Wang et al. 2023) as changed by Alpaca (Taori et al. 2023): lengths in words split
at white space, words that ask for what a text model cannot see or do, "Write a program", and odd first characters.
"""

from __future__ import annotations

import re
import string

from datagen.self_instruct.task_format import Task

MIN_WORDS, MAX_WORDS = 4, 150
# What a model that reads and writes text has no eyes, hands or disk for.
BLOCKED = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
_BLOCKED = re.compile(rf"\b(?:{'|'.join(BLOCKED)})\b", re.IGNORECASE)


def fault_of(task: Task) -> str | None:
    """Why a task is not kept, None if it is."""
    instruction = task.instruction.strip()
    if not instruction:
        return "empty instruction"
    if not task.output.strip():
        return "empty output"
    words = len(instruction.split())
    if words < MIN_WORDS:
        return f"under {MIN_WORDS} words"
    if words > MAX_WORDS:
        return f"above {MAX_WORDS} words"
    if found := _BLOCKED.search(instruction):
        return f"blocked word: {found[0].lower()}"
    if instruction.startswith("Write a program"):
        return "Write a program"
    if instruction[0] in string.punctuation:
        return "begins with punctuation"
    if not instruction[0].isascii():
        return "begins with a non-ASCII character"
    return None
