"""Simulated translation: a kit's task becomes the same task in another kit; other text becomes filler in the language.

Filler has words and sentences of the target kit, chosen by a hash of the text, and about the same length. Its meaning
is different. Numbers, URLs, code and placeholders stay. Use it only to test a run without an API.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from datagen.kits import Kit, load_kit
from datagen.kits.rules import PLACEHOLDERS
from datagen.tasks.kinds import KINDS, Arguments, Task, Value, make_task

_NUMBERS = {"largest", "smallest", "sort_up", "sort_down", "sequence"}  # kinds with a list of numbers
_KEPT = re.compile(r"```.*?```|`[^`\n]+`|https?://\S+|\{\w*\}|<[^<>\s]+>|\[\[?\w+\]?\]|\$\w+|_{2,}", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?।。؟])\s+")


def recognize_task(kit: Kit, instruction: str, input: str) -> Task | None:
    """Return the kit's task with exactly this prompt, or None."""
    prompt = f"{instruction}\0{input}"
    for kind, phrasing, literal, pattern in _patterns(kit.code):
        match = pattern.fullmatch(prompt) if literal in prompt else None
        if match is None:
            continue
        try:
            arguments = tuple(_read_value(kit, kind, match[name]) for name in PLACEHOLDERS[kind])
            task = make_task(kit, kind, arguments, phrasing)
        except (LookupError, ValueError, StopIteration):
            continue
        if (task.instruction, task.input) == (instruction, input):
            return task
    return None


@functools.lru_cache(maxsize=32)
def _patterns(code: str) -> tuple[tuple[str, int, str, re.Pattern[str]], ...]:
    return tuple(_make_patterns(load_kit(code)))


def _make_patterns(kit: Kit) -> Iterator[tuple[str, int, str, re.Pattern[str]]]:
    """Yield (kind, phrasing, longest text without a placeholder, pattern). The text is a quick test before matching."""
    for kind in KINDS:
        for phrasing, (instruction, input) in enumerate(kit.templates[kind]):
            pattern = re.escape(f"{instruction}\0{input}")
            for name in PLACEHOLDERS[kind]:
                group = re.escape(f"{{{name}}}")
                pattern = pattern.replace(group, f"(?P<{name}>.+?)", 1).replace(group, f"(?P={name})")
            literal = max(re.split(r"\{\w+\}", f"{instruction}\0{input}"), key=len)
            yield kind, phrasing, literal, re.compile(pattern, re.DOTALL)


def _read_value(kit: Kit, kind: str, shown: str) -> Value:
    name = PLACEHOLDERS[kind][0]
    if name in ("a", "n"):
        return _read_number(kit, shown)
    if name == "list":
        items = shown.split(kit.separator)
        return tuple(_read_number(kit, item) for item in items) if kind in _NUMBERS else tuple(items)
    return shown


def _read_number(kit: Kit, shown: str) -> int:
    return int("".join(str(kit.digits.index(digit)) for digit in shown))


class Translator:
    """Translates the texts of one record. Equal texts stay equal, different texts stay different."""

    def __init__(self, source: Kit, target: Kit) -> None:
        self._source, self._target = source, target
        self._known: dict[str, str] = {}
        self._taken: set[str] = set()

    def record(self, value: Any) -> Any:
        """Translate all strings of a JSON value. A record with a task of the source kit becomes the target's task."""
        if isinstance(value, dict):
            task = self._task(value)
            return {key: task[key] if key in task else self.record(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.record(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Translate one text. An empty text stays empty."""
        if text not in self._known:
            translated = _filler(text, self._target)
            while translated in self._taken and text.strip():
                translated += f" {_pick(self._target.words, translated)}"
            self._taken.add(translated)
            self._known[text] = translated
        return self._known[text]

    def _task(self, fields: dict[str, Any]) -> dict[str, str]:
        """Return the target kit's fields for a record with a task of the source kit; {} for any other record."""
        instruction, input = fields.get("instruction"), fields.get("input", "")
        if not isinstance(instruction, str) or not isinstance(input, str):
            return {}
        task = recognize_task(self._source, instruction, input)
        translated = carry(task, self._source, self._target) if task else None
        if task is None or translated is None:
            return {}
        self._known.update(
            {instruction: translated.instruction, input: translated.input, task.output: translated.output}
        )
        result = {"instruction": translated.instruction, "input": translated.input}
        output = fields.get("output")
        if isinstance(output, str):
            first, newline, rest = output.partition("\n")
            result["output"] = (
                (translated.output if first == task.output else self.text(first)) + newline + self.text(rest)
            )
        return {name: text for name, text in result.items() if name in fields}


def carry(task: Task, source: Kit, target: Kit) -> Task | None:
    """Return the same kind of task in the target kit, with matching arguments; None if there is no match."""
    has_input = bool(task.input)
    phrasings = [i for i, template in enumerate(target.templates[task.kind]) if bool(template.input) == has_input]
    if not phrasings:
        return None
    chosen = phrasings[_hash(task.instruction) % len(phrasings)]
    try:
        return make_task(target, task.kind, _carry_arguments(task, source, target), chosen)
    except (LookupError, ValueError, StopIteration):
        return None


def _carry_arguments(task: Task, source: Kit, target: Kit) -> Arguments:
    name = PLACEHOLDERS[task.kind][0]
    if name in ("a", "n") or task.kind in _NUMBERS:
        return task.arguments
    (value,) = task.arguments
    if task.kind == "word_to_number":
        return (target.numbers[source.numbers.index(value)],)
    if name == "day":
        return (target.days[source.days.index(value)],)
    if name == "month":
        return (target.months[source.months.index(value)],)
    if task.kind == "opposite":
        return (_same_position(value, list(source.opposite_of), list(target.opposite_of)),)
    if name == "text" and value in source.texts:
        return (_same_position(value, source.texts, target.texts),)
    if name == "text":
        return (target.show(_carry_words(value.split(source.separator), source, target)),)
    words = _carry_words([value] if isinstance(value, str) else value, source, target)
    return (words[0] if isinstance(value, str) else words,)


def _carry_words(words: Iterable[str], source: Kit, target: Kit) -> tuple[str, ...]:
    """Map each word to the word at the same category and position in the target kit. The results are distinct."""
    carried: list[str] = []
    for word in words:
        label = source.category_of[word]
        target_words = target.categories[_same_position(label, list(source.categories), list(target.categories))]
        start = source.categories[label].index(word)
        carried.append(next(w for w in (target_words[start % len(target_words) :] + target_words) if w not in carried))
    return tuple(carried)


def _same_position(value: Any, source: Any, target: Any) -> Any:
    return target[source.index(value) % len(target)]


def _filler(text: str, kit: Kit) -> str:
    """Return filler in the kit's language, with the numbers, code, URLs and placeholders of the text."""
    parts, end = [], 0
    for kept in _KEPT.finditer(text):
        parts += [_filler_plain(text[end : kept.start()], kit), kept[0]]
        end = kept.end()
    return "".join([*parts, _filler_plain(text[end:], kit)])


def _filler_plain(text: str, kit: Kit) -> str:
    lines = re.split(r"(\n+)", text)
    return "".join(line if index % 2 else _filler_line(line, kit) for index, line in enumerate(lines))


def _filler_line(line: str, kit: Kit) -> str:
    core = line.strip()
    if not core:
        return line
    sentences = [_filler_sentence(sentence, kit) for sentence in _SENTENCE_END.split(core)]
    start = line.index(core[0])
    return line[:start] + " ".join(sentences) + line[start + len(core) :]


def _filler_sentence(sentence: str, kit: Kit) -> str:
    words = sentence.split()
    if len(words) >= 4 and not re.search(r"\d", sentence):
        last = said = _pick(kit.texts, sentence)
        while len(said) < 0.7 * len(sentence):
            last = _pick(kit.texts, last + sentence)
            said += f" {last}"
        return said
    return " ".join([_filler_word(word, kit.code) for word in words])


@functools.lru_cache(maxsize=65536)
def _filler_word(word: str, code: str) -> str:
    """Replace a word and keep its punctuation. A word with a digit stays."""
    letters = [i for i, character in enumerate(word) if unicodedata.category(character)[0] in "LM"]
    if not letters or any(character.isdigit() for character in word):
        return word
    return word[: letters[0]] + _pick(load_kit(code).words, word.casefold()) + word[letters[-1] + 1 :]


def _pick(choices: Any, text: str) -> Any:
    return choices[_hash(text) % len(choices)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
