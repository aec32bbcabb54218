"""What a format's reader yields: a record of the engine, or the reason for which an entry was left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datagen.sources import Source
from engine.base.errors import UserError
from engine.base.in_language import in_language
from engine.base.languages import Language
from engine.base.records import InstructionRecord, RankingRecord
from engine.base.turns import SYSTEM, Turn

Entry = InstructionRecord | RankingRecord | str  # str: why it was left out

OTHER_LANGUAGE = "other language"
NO_PROMPT, NO_ANSWER = "empty prompt", "empty answer"
ONE_RANK = "answers of equal rank or text"

# What published files write for a language besides its code and its English name: ISO 639-3, scripts, standards.
_ALIASES = {
    "en": "eng", "ru": "rus", "de": "deu ger", "zh": "zho chi cmn simplified_chinese traditional_chinese",
    "fr": "fra fre", "es": "spa", "it": "ita", "nl": "nld dut", "vi": "vie", "id": "ind", "hu": "hun",
    "ar": "ara arb standard_arabic modern_standard_arabic", "ro": "ron rum", "da": "dan", "sk": "slk slo",
    "uk": "ukr", "ca": "cat", "sr": "srp", "hr": "hrv", "hi": "hin", "bn": "ben", "ta": "tam", "ne": "npi nep",
    "ml": "mal", "mr": "mar", "te": "tel", "kn": "kan",
}  # fmt: skip


def is_named(value: str, language: Language) -> bool:
    """Return whether a file's word for a language means this one: ne, npi, ne-NP, npi_Deva or Nepali."""
    word = "_".join(value.lower().replace("-", " ").replace("_", " ").replace("(", " ").replace(")", " ").split())
    names = {language.code.lower(), language.name.lower(), *_ALIASES.get(language.code, "").split()}
    return word in names or word.split("_")[0] in {name for name in names if len(name) <= 3}


def seems_named(source: Source, texts: Sequence[str], language: Language) -> bool:
    """Return whether an entry is in the language: by its field `language` or `lang`, otherwise by its texts."""
    for name in ("language", "lang"):
        if isinstance(value := source.fields.get(name), str) and value.strip():
            return is_named(value, language)
    return all(in_language(text, language) for text in texts)


def instruction(id: str, instruction: str, input: str, output: str, history: tuple[Turn, ...] = ()) -> Entry:
    """Return an instruction record, or the reason to leave it out."""
    if not instruction.strip():
        return NO_PROMPT
    if not output.strip():
        return NO_ANSWER
    return InstructionRecord(id, instruction, input, output, history)


def ranking(
    id: str, instruction: str, input: str, ranked: Sequence[tuple[str, int]], history: tuple[Turn, ...] = ()
) -> Entry:
    """Return a ranking record of (answer, rank), a smaller rank the better, or the reason to leave it out."""
    if not instruction.strip():
        return NO_PROMPT
    answers, given = tuple(answer for answer, _ in ranked), [rank for _, rank in ranked]
    if len(set(given)) < 2 or len(set(answers)) < 2:
        return ONE_RANK
    dense = {rank: i for i, rank in enumerate(sorted(set(given)), 1)}
    return RankingRecord(id, instruction, input, answers, tuple(dense[rank] for rank in given), history)


def conversation(id: str, turns: Sequence[Turn]) -> Entry:
    """Return an instruction record of turns that end with an answer, or the reason to leave it out."""
    said = turns[1:] if turns and turns[0].role == SYSTEM else turns
    if len(said) < 2:
        return "no question with an answer"
    if any(a.role == b.role for a, b in zip(said, said[1:])):
        return "roles do not take turns"
    if not all(turn.content.strip() for turn in turns):
        return NO_ANSWER
    *history, asked, answer = turns
    return instruction(id, asked.content, "", answer.content, tuple(history))


def id_of(source: Source, number: int, name: str, *fields: str) -> str:
    """Return the entry's own id, from the first of these fields that has one, else name/number."""
    for field in fields:
        value = source.fields.get(field)
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return f"{name}/{number}"


def wrong(source: Source, message: str) -> UserError:
    """Return the error of an entry that is not in the format, with file and line."""
    return UserError(f"{source.where}: {message}")


def list_of(source: Source, field: str) -> list[Any]:
    """Return a field that is a list. UserError for anything else."""
    value = source.fields.get(field)
    if not isinstance(value, list):
        found = f"is {value!r:.60}" if field in source.fields else f"is missing (fields: {fields_of(source)})"
        raise wrong(source, f"field {field!r} {found}: it must be a list of messages")
    return value


def fields_of(source: Source) -> str:
    """Return the names of an entry's fields, for messages."""
    return ", ".join(f"{name!r:.40}" for name in list(source.fields)[:8]) or "none"
