"""Rules that a program can check on an answer: its length, its format, its language, and words it must have or avoid.

A rule is a record, {"rule": "max_words", "value": 30}. RULES lists the names, with what each one's value must be.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.base.errors import UserError
from engine.base.in_language import in_language
from engine.base.languages import get_language
from engine.base.nearest import nearest_hint
from engine.base.record_fields import BadField, short, text_of
from engine.base.scripts import main_script
from engine.base.strict_json import parse_whole

_UNIT = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")
# A full stop ends a sentence before a blank only ("3.14" goes on); the marks of other scripts end one anywhere.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'»”’)\]]*(?=\s|$)|[。！？।॥؟۔]+|\n")
_NUMBERED = re.compile(r"\s*(\d+)(?:[.)\]:]\s+|[．、）：]\s*)\S")
_BULLET = re.compile(r"\s*[-*•]\s+\S")
_TITLE = re.compile(r"#{1,6}\s+\S")
_FENCE = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
_BLANK_LINE = re.compile(r"\n\s*\n")
_CLOSING = " \t\r\n.!?…。！？।॥؟۔\"'»”’)]*"


def units_of(text: str) -> list[str]:
    """Return the parts of a text between blanks, and each Chinese character as one of its own."""
    return _UNIT.findall(text)


def words_of(text: str) -> list[str]:
    """Return the units of a text that have a letter or a digit: a sign alone is no word."""
    return [unit for unit in units_of(text) if any(c.isalnum() for c in unit)]


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text. A line break ends one, and so does an abbreviation's full stop."""
    return [part for part in _SENTENCE_END.split(text) if any(c.isalnum() for c in part)]


def paragraphs_of(text: str) -> list[str]:
    """Return the paragraphs of a text, split at blank lines."""
    return [part for part in _BLANK_LINE.split(text) if part.strip()]


def numbered_lines(text: str) -> list[int]:
    """Return the numbers that begin lines, such as "2." or "२)", in order."""
    return [int(match[1]) for line in text.splitlines() if (match := _NUMBERED.match(line))]


def is_numbered_list(text: str, count: int) -> bool:
    """Return whether the numbered lines of a text are 1 to `count`; lines before and after them are allowed."""
    return numbered_lines(text) == list(range(1, count + 1))


def is_bullet_list(text: str, count: int) -> bool:
    """Return whether a text has `count` lines that begin with "-", "*" or "•" and a blank."""
    return sum(bool(_BULLET.match(line)) for line in text.splitlines()) == count


def is_json_object(text: str, keys: Sequence[str]) -> bool:
    """Return whether a text is one JSON object with at least these keys, alone or in a Markdown fence."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        found = parse_whole(fenced[1] if fenced else text.strip())
    except ValueError:
        return False
    return isinstance(found, dict) and set(keys) <= set(found)


def has_title(text: str) -> bool:
    """Return whether the first line is a Markdown title ("# ...") and text follows it."""
    first, _, rest = text.strip().partition("\n")
    return bool(_TITLE.match(first) and rest.strip())


def is_in_script(text: str, script: str) -> bool:
    """Return whether all letters of a text are in a script (ISO 15924), and it has some."""
    found = main_script((script,), text)
    return found is not None and found[1] == 1.0


def has_text(text: str, wanted: str) -> bool:
    """Return whether `wanted` occurs in a text, also inside a word; capitals and the Unicode form are ignored."""
    return _folded(wanted) in _folded(text)


def begins_with(text: str, wanted: str) -> bool:
    """Return whether a text begins with `wanted`; blanks, capitals and the Unicode form are ignored."""
    return _folded(text).lstrip().startswith(_folded(wanted).lstrip())


def ends_with(text: str, wanted: str) -> bool:
    """Return whether a text ends with `wanted`; blanks, closing marks, capitals and the Unicode form are ignored."""
    return _folded(text).rstrip(_CLOSING).endswith(_folded(wanted).rstrip(_CLOSING))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


@dataclass(frozen=True)
class Kind:
    """A kind of rule: what checks an answer, a test of the rule's value, and the value in words, for messages."""

    check: Callable[[str, Any], bool]
    is_value: Callable[[Any], bool]
    value: str


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 100_000


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip(_CLOSING))


def _is_keys(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(key, str) for key in value)


def _is_language(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(get_language(value))
    except UserError:
        return False


def _is_script(value: Any) -> bool:
    return isinstance(value, str) and main_script((value,), "a") is not None


def _counted(check: Callable[[str, Any], bool]) -> Kind:
    return Kind(check, _is_count, "a whole number, 1 or more")


def _worded(check: Callable[[str, Any], bool]) -> Kind:
    return Kind(check, _is_text, "a text with a letter or a digit")


RULES = {
    "max_words": _counted(lambda text, n: len(words_of(text)) <= n),
    "min_words": _counted(lambda text, n: len(words_of(text)) >= n),
    "max_sentences": _counted(lambda text, n: len(sentences_of(text)) <= n),
    "min_sentences": _counted(lambda text, n: len(sentences_of(text)) >= n),
    "max_characters": _counted(lambda text, n: len(text.strip()) <= n),
    "min_characters": _counted(lambda text, n: len(text.strip()) >= n),
    "paragraphs": _counted(lambda text, n: len(paragraphs_of(text)) == n),
    "numbered_list": _counted(is_numbered_list),
    "bullet_list": _counted(is_bullet_list),
    "json_object": Kind(is_json_object, _is_keys, "a list of the keys that it must have, [] for any"),
    "title": Kind(lambda text, _: has_title(text), lambda value: value is True, "true"),
    "language": Kind(lambda text, code: in_language(text, get_language(code)), _is_language, "a language code"),
    "script": Kind(is_in_script, _is_script, "a script that this program knows, such as Deva"),
    "keyword": _worded(has_text),
    "forbidden": _worded(lambda text, wanted: not has_text(text, wanted)),
    "starts_with": _worded(begins_with),
    "ends_with": _worded(ends_with),
}


@dataclass(frozen=True)
class Rule:
    """One rule: its name in RULES and its value."""

    name: str
    value: Any

    def holds(self, answer: str) -> bool:
        """Return whether an answer follows the rule. A blank answer follows none."""
        return bool(answer.strip()) and RULES[self.name].check(answer, self.value)


def read_rules(value: Any) -> tuple[Rule, ...]:
    """Return the rules of a list of {"rule", "value"}. BadField for anything else, and for an empty list."""
    if not isinstance(value, list | tuple) or not value:
        raise BadField(f"field 'rules' is {short(value)}: it must list rules such as "
                       '{"rule": "max_words", "value": 30}')  # fmt: skip
    return tuple(_read_rule(one, f"rule {number}") for number, one in enumerate(value, start=1))


def _read_rule(value: Any, which: str) -> Rule:
    if not isinstance(value, dict) or set(value) != {"rule", "value"}:
        raise BadField(f"{which} is {short(value)}: it must have the fields rule and value, and no other")
    name, wanted = value["rule"], value["value"]
    if not isinstance(name, str) or name not in RULES:
        hint = nearest_hint(name, RULES) if isinstance(name, str) else ""
        raise BadField(f"{which} is named {short(name)}: {hint}choose from {', '.join(RULES)}")
    kind = RULES[name]
    if not kind.is_value(wanted):
        raise BadField(f"{which}, {name}, has the value {short(wanted)}: give {kind.value}")
    for text in [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []:
        text_of(f"'value' of {which}", text, empty_is_allowed=True)
    return Rule(name, tuple(wanted) if isinstance(wanted, list) else wanted)


def rules_in_json(text: str) -> tuple[Rule, ...]:
    """Return the rules of a text, a JSON list of {"rule", "value"}. BadField for anything else."""
    try:
        value = parse_whole(text)
    except json.JSONDecodeError as error:
        raise BadField(f"{short(text)} is no JSON ({error.msg}): give a list of rules") from None
    except ValueError as error:
        raise BadField(f"{short(text)} is no JSON ({error}): give a list of rules") from None
    return read_rules(value)
