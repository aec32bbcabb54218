"""Validate a language kit file: check every rule of the format and report all violations at once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.base.strict_json import parse_whole

# Kind of task -> the placeholders that each of its templates must contain.
PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "add": ("a", "b"),
    "subtract": ("a", "b"),
    "number_to_word": ("n",),
    "word_to_number": ("word",),
    "next_number": ("n",),
    "previous_number": ("n",),
    "largest": ("list",),
    "smallest": ("list",),
    "sort_up": ("list",),
    "sort_down": ("list",),
    "sequence": ("list",),
    "even_or_odd": ("n",),
    "day_after": ("day",),
    "day_before": ("day",),
    "month_after": ("month",),
    "month_before": ("month",),
    "opposite": ("word",),
    "category": ("word",),
    "odd_one_out": ("list",),
    "count_items": ("list",),
    "copy": ("text",),
    "first_item": ("list",),
    "last_item": ("list",),
    "reverse": ("list",),
}
FIELDS = ("code", "digits", "separator", "numbers", "days", "months", "even", "odd")
FIELDS += ("opposites", "categories", "texts", "templates")

MAX_CHARACTERS = 2**20  # in a kit file
MIN_OPPOSITES = 24
MIN_CATEGORIES = 6
MIN_CATEGORY_WORDS = 12
MIN_TEXTS = 40
MIN_PHRASINGS = 4
# The format asks for 3-7 words. The limit is wider because a Vietnamese word often contains a space.
TEXT_UNITS = (3, 12)
# For texts without spaces (Chinese).
UNSPACED_TEXT_CHARACTERS = (4, 24)

_BRACED = re.compile(r"\{([^{}]*)\}")


def read_kit(path: Path) -> tuple[Any, list[str]]:
    """Return the kit file's content and its violations, one line each: `FILE: FIELD: what is wrong`."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
        data = parse_whole(text)
    except FileNotFoundError:
        return None, [f"{path.name}: file not found in {path.parent}: add the kit"]
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
        return None, [f"{path.name}: not UTF-8 JSON without repeated keys: {error}"]
    if not isinstance(data, dict):
        return data, [f"{path.name}: must be an object with the fields {', '.join(FIELDS)}"]
    problems = [f"{path.name}: {line}" for line in _check_kit(data, path.stem)]
    if "\\u" in text:
        problems.append(f"{path.name}: written with \\u escapes: write the characters themselves")
    return data, problems


def _check_kit(data: dict[str, Any], code: str) -> Iterator[str]:
    for name in data:
        if name not in FIELDS:
            yield f"{name}: unknown field: the fields are {', '.join(FIELDS)}"
    missing = [name for name in FIELDS if name not in data]
    if missing:
        # The later checks compare fields with each other, so all fields must exist.
        yield from (f"{name}: missing" for name in missing)
        return
    if data["code"] != code:
        yield f"code: {data['code']!r:.60} differs from the file's name {code!r:.60}"
    digits = data["digits"]
    if not isinstance(digits, str) or [unicodedata.digit(c, None) for c in digits] != list(range(10)):
        yield f"digits: {digits!r:.60} must be the ten digits 0 to 9 in order"
        digits = "0123456789"
    separator = data["separator"]
    if not isinstance(separator, str) or not separator.strip():
        yield f"separator: {separator!r:.60} must be a visible mark such as ', '"
        separator = ", "
    yield from _check_words("numbers", data["numbers"], separator, exactly=31)
    yield from _check_words("days", data["days"], separator, exactly=7)
    yield from _check_words("months", data["months"], separator, exactly=12)
    yield from _check_words("even, odd", [data["even"], data["odd"]], separator, exactly=2)
    yield from _check_opposites(data["opposites"], separator)
    yield from _check_categories(data["categories"], separator)
    yield from _check_texts(data["texts"])
    if isinstance(data["templates"], dict):
        yield from _check_templates(data)
    else:
        yield "templates: must be an object: kind -> list of phrasings"


def _check_string(field: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value:
        yield f"{field}: {value!r:.60} must be a non-empty string"
        return
    if value != value.strip() or "  " in value:
        yield f"{field}: {value!r:.60} has leading, trailing or double spaces: remove them"
    if not unicodedata.is_normalized("NFC", value):
        yield f"{field}: {value!r:.60} is not in Unicode NFC: write {unicodedata.normalize('NFC', value)!r:.60}"
    if any(unicodedata.category(c) == "Cc" for c in value):
        yield f"{field}: {value!r:.60} has a control character: remove it"


def _check_words(
    field: str, words: Any, separator: str, exactly: int | None = None, at_least: int = 1
) -> Iterator[str]:
    if not isinstance(words, list):
        yield f"{field}: must be a list of words"
        return
    if exactly is not None and len(words) != exactly:
        yield f"{field}: has {len(words)} words, must have {exactly}"
    if len(words) < at_least:
        yield f"{field}: has {len(words)} words, must have at least {at_least}"
    seen: set[str] = set()
    for index, word in enumerate(words):
        faults = list(_check_string(f"{field}[{index}]", word))
        yield from faults
        if not isinstance(word, str):
            continue
        if separator.strip() in word or "{" in word or "}" in word:
            mark = f"the separator {separator!r:.60}"
            yield f"{field}[{index}]: {word!r:.60} contains a brace or {mark}: choose another word"
        if any(c.isdigit() for c in word):
            yield f"{field}[{index}]: {word!r:.60} contains a digit: write it as a word"
        if word.casefold() in seen:
            yield f"{field}[{index}]: {word!r:.60} occurs twice: replace one"
        seen.add(word.casefold())


def _check_opposites(pairs: Any, separator: str) -> Iterator[str]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        yield "opposites: must be a list of [word, opposite]"
        return
    if len(pairs) < MIN_OPPOSITES:
        yield f"opposites: has {len(pairs)} pairs, must have at least {MIN_OPPOSITES}"
    # Flattened, pair i is words 2 i and 2 i + 1.
    yield from _check_words("opposites, flattened", [word for pair in pairs for word in pair], separator)


def _check_categories(categories: Any, separator: str) -> Iterator[str]:
    if not isinstance(categories, dict):
        yield "categories: must be an object: label -> list of words"
        return
    if len(categories) < MIN_CATEGORIES:
        yield f"categories: has {len(categories)}, must have at least {MIN_CATEGORIES}"
    yield from _check_words("categories, labels", list(categories), separator)
    owner: dict[str, str] = {label.casefold(): "the labels" for label in categories}
    for label, words in categories.items():
        yield from _check_words(f"categories.{label}", words, separator, at_least=MIN_CATEGORY_WORDS)
        for word in words if isinstance(words, list) else []:
            if isinstance(word, str) and owner.setdefault(word.casefold(), label) != label:
                yield f"categories.{label}: {word!r:.60} is also in {owner[word.casefold()]}: keep it in one"


def _check_texts(texts: Any) -> Iterator[str]:
    if not isinstance(texts, list):
        yield "texts: must be a list of sentences"
        return
    if len(texts) < MIN_TEXTS:
        yield f"texts: has {len(texts)} sentences, must have at least {MIN_TEXTS}"
    for index, text in enumerate(texts):
        field = f"texts[{index}]"
        yield from _check_string(field, text)
        if not isinstance(text, str):
            continue
        units, (low, high), unit = len(text.split()), TEXT_UNITS, "words"
        if units == 1:
            units, (low, high), unit = len(text), UNSPACED_TEXT_CHARACTERS, "characters"
        if not low <= units <= high:
            yield f"{field}: {text!r:.60} has {units} {unit}, must have {low} to {high}"
        if "{" in text or "}" in text:
            yield f"{field}: {text!r:.60} contains a brace: remove it"
        if text in texts[:index]:
            yield f"{field}: {text!r:.60} occurs twice: replace one"


def _check_templates(data: dict[str, Any]) -> Iterator[str]:
    templates = data["templates"]
    for kind in templates:
        if kind not in PLACEHOLDERS:
            yield f"templates.{kind}: unknown kind: the kinds are {', '.join(PLACEHOLDERS)}"
    shapes: dict[str, str] = {}  # phrasing without placeholder names -> field where it was first seen
    for kind, names in PLACEHOLDERS.items():
        entries = templates.get(kind)
        if not isinstance(entries, list) or len(entries) < MIN_PHRASINGS:
            yield f"templates.{kind}: must be a list of at least {MIN_PHRASINGS} phrasings"
            continue
        valid = []
        for index, entry in enumerate(entries):
            field = f"templates.{kind}[{index}]"
            faults = list(_check_template(field, entry, names))
            yield from faults
            if faults:
                continue
            valid.append(entry)
            shape = _BRACED.sub("{}", entry["instruction"] + "\n" + entry["input"]).casefold()
            if shape in shapes:
                yield f"{field}: has the same wording as {shapes[shape]}: word it differently"
            shapes.setdefault(shape, field)
            yield from _check_choices(field, kind, shape, data)
        if len(valid) == len(entries):
            if all(entry["input"] for entry in entries):
                yield f"templates.{kind}: at least one phrasing must be all in the instruction (input '')"
            if len(names) == 1 and not any(entry["input"] for entry in entries):
                yield f"templates.{kind}: at least one phrasing must have {{{names[0]}}} in the input"


def _check_template(field: str, entry: Any, names: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(entry, dict) or set(entry) != {"instruction", "input"}:
        yield f"{field}: must be {{'instruction': ..., 'input': ...}} and nothing else"
        return
    yield from _check_string(f"{field}.instruction", entry["instruction"])
    if entry["input"] != "":
        yield from _check_string(f"{field}.input", entry["input"])
    if not isinstance(entry["instruction"], str) or not isinstance(entry["input"], str):
        return
    both = entry["instruction"] + "\n" + entry["input"]
    wanted = " and ".join(f"{{{name}}}" for name in names)
    stray = _BRACED.sub("", both)
    if sorted(_BRACED.findall(both)) != sorted(names) or "{" in stray or "}" in stray:
        yield f"{field}: must contain {wanted} exactly once and no other braces"
    elif entry["input"] and not _BRACED.search(entry["input"]):
        yield f"{field}.input: must be '' or contain a placeholder"
    elif len(names) == 2 and entry["input"]:
        yield f"{field}.input: must be '': keep {wanted} in the instruction"


def _check_choices(field: str, kind: str, shape: str, data: dict[str, Any]) -> Iterator[str]:
    if kind == "even_or_odd":
        for name in ("even", "odd"):
            if isinstance(data[name], str) and data[name].casefold() not in shape:
                yield f"{field}: must name the choice {name} ({data[name]!r:.60})"
    if kind == "category" and isinstance(data["categories"], dict):
        # One label may be part of another word; two labels are a list of choices.
        named = [label for label in data["categories"] if label.casefold() in shape]
        if len(named) > 1:
            yield f"{field}: lists choices ({', '.join(named)}): ask for the group without naming any"
