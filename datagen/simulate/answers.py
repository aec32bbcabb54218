"""Plausible answers to the requests of our own templates: instructions, translations, rankings.

What a request asks for is told from its last message:
  ranking       it is the second user turn, or begins like the template `rank.txt`: the answer is `B > A = D > C`, of
                the ids in the object of responses that was shown, {"responses": {"A": text, ...}, ...}
  instructions  it begins like the template `instruct.txt`, or holds no JSON object
  translation   any other: the last JSON object in it, with its keys, into the language named after "into" or "to", and
                from the one named after "from" (English where there is none)
Equal requests have equal answers, in every process.
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
    """The text that the simulator answers with."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    last = asked[-1] if asked else ""
    if len(asked) > 1 or _begins_like("rank", last):
        return rank_responses(_objects("\n".join(asked)))
    found = _objects(last)
    if _begins_like("instruct", last) or not found:
        return make_instructions(last, Random(f"{seed}/{last}"))
    told = "\n".join(message["content"] for message in messages)
    return json.dumps(Translator(_kit(_FROM, told), _kit(_INTO, told)).record(found[-1]), ensure_ascii=False)


def _begins_like(template: str, text: str) -> bool:
    first_line = _first_line(template)
    return first_line is not None and first_line.match(text.lstrip()) is not None


@functools.cache
def _first_line(template: str) -> re.Pattern[str] | None:
    """The template's first line with anything for its `$placeholders`; None where there is no such template."""
    path = TEMPLATES_DIR / f"{template}.txt"
    if not path.is_file():
        return None
    line = path.read_text(encoding="utf-8").lstrip().split("\n")[0]
    return re.compile(".+".join(map(re.escape, re.split(r"\$\{?\w+\}?", line))))


def _kit(pattern: re.Pattern[str], text: str) -> Kit:
    found = pattern.search(text)
    return load_kit(_NAMES[found[1]] if found else "en")


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, outermost ones only."""
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
    """The ids of the last `responses` shown, best first, ties joined by "=": `B > A = D > C`.

    Where the prompt is a kit's task: right and nothing else, then right but talking on, then anything else, silence
    last. Otherwise the hash of a response decides. Equal responses tie.
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
    """The answer to a task of any kit, None for a prompt that no kit has."""
    for code in kit_codes():
        if task := recognize_task(load_kit(code), instruction, input):
            return task.output
    return None
