"""Translation by the language kits: a task that a kit has becomes the same task in another kit, other text an echo.

The echo has the language's own words and sentences, chosen by a hash of the text, about as many; it says something
else. Numbers, URLs, code and placeholders stay. It is good for nothing but trying a run without an API.
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

_NUMBERS = {"largest", "smallest", "sort_up", "sort_down", "sequence"}  # kinds whose list holds numbers
_KEPT = re.compile(r"```.*?```|`[^`\n]+`|https?://\S+|\{\w*\}|<[^<>\s]+>|\[\[?\w+\]?\]|\$\w+|_{2,}", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?।。؟])\s+")


def recognize_task(kit: Kit, instruction: str, input: str) -> Task | None:
    """The kit's task with exactly this prompt, or None."""
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
    """Kind, phrasing, its longest stretch without a placeholder (quick to look for), and the whole as a pattern."""
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
    """Translates the texts of one record; what differs before differs afterwards, what is equal stays equal."""

    def __init__(self, source: Kit, target: Kit) -> None:
        self._source, self._target = source, target
        self._known: dict[str, str] = {}
        self._taken: set[str] = set()

    def record(self, value: Any) -> Any:
        """A JSON value with its strings translated; a kit's task, in fields of an instruction record, as a task."""
        if isinstance(value, dict):
            task = self._task(value)
            return {key: task[key] if key in task else self.record(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.record(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """One text; empty stays empty."""
        if text not in self._known:
            translated = _echo(text, self._target)
            while translated in self._taken and text.strip():
                translated += f" {_pick(self._target.words, translated)}"
            self._taken.add(translated)
            self._known[text] = translated
        return self._known[text]

    def _task(self, fields: dict[str, Any]) -> dict[str, str]:
        """The fields of a record that is one of the source kit's tasks, as the target's; {} for any other."""
        instruction, input = fields.get("instruction"), fields.get("input", "")
        if not isinstance(instruction, str) or not isinstance(input, str):
            return {}
        task = recognize_task(self._source, instruction, input)
        there = carry(task, self._source, self._target) if task else None
        if task is None or there is None:
            return {}
        self._known.update({instruction: there.instruction, input: there.input, task.output: there.output})
        result = {"instruction": there.instruction, "input": there.input}
        output = fields.get("output")
        if isinstance(output, str):
            first, newline, rest = output.partition("\n")
            result["output"] = (there.output if first == task.output else self.text(first)) + newline + self.text(rest)
        return {name: text for name, text in result.items() if name in fields}


def carry(task: Task, source: Kit, target: Kit) -> Task | None:
    """The same kind of task in the target kit, with its arguments where they can be matched; None if they cannot."""
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
        return (_same_place(value, list(source.opposite_of), list(target.opposite_of)),)
    if name == "text" and value in source.texts:
        return (_same_place(value, source.texts, target.texts),)
    if name == "text":
        return (target.show(_carry_words(value.split(source.separator), source, target)),)
    words = _carry_words([value] if isinstance(value, str) else value, source, target)
    return (words[0] if isinstance(value, str) else words,)


def _carry_words(words: Iterable[str], source: Kit, target: Kit) -> tuple[str, ...]:
    """Each word by the place of its category and its place in there; two words never become one."""
    carried: list[str] = []
    for word in words:
        label = source.category_of[word]
        there = target.categories[_same_place(label, list(source.categories), list(target.categories))]
        start = source.categories[label].index(word)
        carried.append(next(w for w in (there[start % len(there) :] + there) if w not in carried))
    return tuple(carried)


def _same_place(value: Any, there: Any, here: Any) -> Any:
    return here[there.index(value) % len(here)]


def _echo(text: str, kit: Kit) -> str:
    """Other text in the kit's language, with the numbers, code, URLs and placeholders of this one."""
    parts, end = [], 0
    for kept in _KEPT.finditer(text):
        parts += [_echo_plain(text[end : kept.start()], kit), kept[0]]
        end = kept.end()
    return "".join([*parts, _echo_plain(text[end:], kit)])


def _echo_plain(text: str, kit: Kit) -> str:
    lines = re.split(r"(\n+)", text)
    return "".join(line if index % 2 else _echo_line(line, kit) for index, line in enumerate(lines))


def _echo_line(line: str, kit: Kit) -> str:
    core = line.strip()
    if not core:
        return line
    sentences = [_echo_sentence(sentence, kit) for sentence in _SENTENCE_END.split(core)]
    start = line.index(core[0])
    return line[:start] + " ".join(sentences) + line[start + len(core) :]


def _echo_sentence(sentence: str, kit: Kit) -> str:
    words = sentence.split()
    if len(words) >= 4 and not re.search(r"\d", sentence):
        last = said = _pick(kit.texts, sentence)
        while len(said) < 0.7 * len(sentence):
            last = _pick(kit.texts, last + sentence)
            said += f" {last}"
        return said
    return " ".join([_echo_word(word, kit.code) for word in words])


@functools.lru_cache(maxsize=65536)
def _echo_word(word: str, code: str) -> str:
    """Another word between the same punctuation; a word with a digit stays."""
    letters = [i for i, character in enumerate(word) if unicodedata.category(character)[0] in "LM"]
    if not letters or any(character.isdigit() for character in word):
        return word
    return word[: letters[0]] + _pick(load_kit(code).words, word.casefold()) + word[letters[-1] + 1 :]


def _pick(choices: Any, text: str) -> Any:
    return choices[_hash(text) % len(choices)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
