"""Plausible answers to the requests of the built-in templates: instructions, translations, rankings.

The last message decides the type of answer:
  ranking       if it is the second user turn or begins like the template `rank.txt`: a line `B > A = D > C` over the
                ids of the last object of responses shown, {"responses": {"A": text, ...}, ...}
  instructions  if it begins like the template `instruct.txt` or contains no JSON object: numbered tasks
  translation   otherwise: the last JSON object, with the same keys, into the language named after "into" or "to" and
                from the language named after "from" (default: English)
Equal requests get equal answers, in every process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from datagen.api.chat import Message
from datagen.kits import Kit, kit_codes, load_kit
from datagen.simulate.instructions import make_instructions
from datagen.simulate.translation import Translator, recognize_task
from engine.base.languages import LANGUAGES

TEMPLATES_DIR = Path(__file__).parents[1] / "templates"
_NAMES = {LANGUAGES[code].name: code for code in kit_codes()}
_DECODER = json.JSONDecoder()
_INTO = re.compile(rf"\b(?:into|to)\s+(?:\w+\s+)?({'|'.join(_NAMES)})\b")
_FROM = re.compile(rf"\bfrom\s+(?:\w+\s+)?({'|'.join(_NAMES)})\b")


def simulated_answer(messages: Sequence[Message], seed: int = 0) -> str:
    """Return the simulator's answer."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    last = asked[-1] if asked else ""
    if len(asked) > 1 or _begins_like("rank", last):
        return rank_responses(_objects("\n".join(asked)))
    found = _objects(last)
    if _begins_like("instruct", last) or not found:
        return make_instructions(last, Random(f"{seed}/{last}"))
    text = "\n".join(message["content"] for message in messages)
    return json.dumps(Translator(_kit(_FROM, text), _kit(_INTO, text)).record(found[-1]), ensure_ascii=False)


def _begins_like(template: str, text: str) -> bool:
    first_line = _first_line(template)
    return first_line is not None and first_line.match(text.lstrip()) is not None


@functools.cache
def _first_line(template: str) -> re.Pattern[str] | None:
    """Return a pattern for the template's first line, with any text for `$placeholders`; None if there is no file."""
    path = TEMPLATES_DIR / f"{template}.txt"
    if not path.is_file():
        return None
    line = path.read_text(encoding="utf-8").lstrip().split("\n")[0]
    return re.compile(".+".join(map(re.escape, re.split(r"\$\{?\w+\}?", line))))


def _kit(pattern: re.Pattern[str], text: str) -> Kit:
    found = pattern.search(text)
    return load_kit(_NAMES[found[1]] if found else "en")


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the outermost JSON objects in a text, without empty ones."""
    objects, at = [], text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except ValueError:
            end = at + 1
        else:
            if value:
                objects.append(value)
        at = text.find("{", end)
    return objects


def rank_responses(shown: Sequence[dict[str, Any]]) -> str:
    """Rank the ids of the last `responses` shown, best first, ties joined by "=": `B > A = D > C`.

    If the prompt is a task of a kit, the right answer alone comes first, then the right answer with more text. Other
    responses follow, ordered by hash, and empty ones come last. Equal responses tie.
    """
    record = next((item for item in reversed(shown) if isinstance(item.get("responses"), dict)), {"responses": {}})
    grades: dict[Any, list[str]] = {}
    for name, response in record["responses"].items():
        grades.setdefault(_grade(record, str(response)), []).append(name)
    return " > ".join(" = ".join(grades[grade]) for grade in sorted(grades))


def _grade(record: dict[str, Any], response: str) -> tuple[int, int]:
    answer = right_answer(str(record.get("instruction", "")), str(record.get("input", "")))
    words = response.strip()
    if answer is not None and words == answer:
        return 0, 0
    if answer is not None and words.split("\n")[0].strip() == answer:
        return 1, 0
    if not words:
        return 3, 0
    return 2, int.from_bytes(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=2).digest(), "big")


@functools.lru_cache(maxsize=4096)
def right_answer(instruction: str, input: str) -> str | None:
    """Return the answer to a task of any kit, or None if no kit has this prompt."""
    for code in kit_codes():
        if task := recognize_task(load_kit(code), instruction, input):
            return task.output
    return None
