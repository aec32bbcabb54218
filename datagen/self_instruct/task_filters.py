"""Alpaca's rules that drop a generated task without comparing it to others, each with a reason.

The rules are Self-Instruct's (Wang et al. 2023) as changed by Alpaca (Taori et al. 2023): length in words split at
whitespace, blocked words, "Write a program", and the first character.
"""

from __future__ import annotations

import re
import string

from datagen.self_instruct.task_format import Task

MIN_WORDS, MAX_WORDS = 4, 150
# Things that a text-only model cannot see, hear, open or do.
BLOCKED = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
_BLOCKED = re.compile(rf"\b(?:{'|'.join(BLOCKED)})\b", re.IGNORECASE)


def fault_of(task: Task) -> str | None:
    """Return why a task is dropped, or None if it is kept."""
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
