"""Measure average lengths of prompts and responses, by language and source (Table 2 of Lai et al. 2023, "Okapi").

A prompt is the instruction, then a line break and the input if there is one. Lengths are in Unicode words (each Chinese
letter is one) and in characters, because a model's tokenizer would favour some languages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datagen.sources import Source
from datagen.text.language_faults import language_fault
from datagen.text.words import unicode_words
from datagen.translation.texts import load_checks
from engine.base.languages import LANGUAGES

UNKNOWN = "?"
_FOLDERS_SEARCHED = 2  # above a file, for a language code
_RECORDS_CHECKED = 20  # per file, for their language


@dataclass
class Lengths:
    """Length sums over the records of one language and source."""

    records: int = 0
    prompt_words: int = 0
    prompt_characters: int = 0
    responses: int = 0  # non-empty ones
    response_words: int = 0
    response_characters: int = 0

    def add(self, prompt: str, response: str) -> None:
        """Add one record."""
        self.records += 1
        self.prompt_words += len(unicode_words(prompt))
        self.prompt_characters += len(prompt)
        if response:
            self.responses += 1
            self.response_words += len(unicode_words(response))
            self.response_characters += len(response)

    def averages(self) -> tuple[float, float, float, float]:
        """Return average words and characters per prompt, then per non-empty response; 0 if there is none."""
        prompts, responses = max(self.records, 1), max(self.responses, 1)
        return (
            self.prompt_words / prompts,
            self.prompt_characters / prompts,
            self.response_words / responses,
            self.response_characters / responses,
        )


def languages_of(records: Sequence[Source]) -> list[str]:
    """Return the language code of each record: its `lang`, else that of its file, else "?".

    The language of a file is the code at the start or end of its name, or of one of the two folders above it. It is "?"
    if the texts fail the language check, because "it", "id" and "hr" are words too.
    """
    samples: dict[str, list[Source]] = {}
    for record in records:
        of_file = samples.setdefault(record.path, [])
        if len(of_file) < _RECORDS_CHECKED and not isinstance(record.fields.get("lang"), str):
            of_file.append(record)
    of_path = {path: _language_of_file(path, of_file) for path, of_file in samples.items()}
    languages = (record.fields.get("lang") for record in records)
    return [lang if isinstance(lang, str) else of_path[record.path] for record, lang in zip(records, languages)]


def _language_of_file(path: str, records: Sequence[Source]) -> str:
    code = _code_in_name(Path(path))
    texts = [record.text(name, default="") for record in records for name in ("instruction", "input", "output")]
    if code is None or not records:
        return UNKNOWN
    load_checks(LANGUAGES[code])
    return UNKNOWN if language_fault("", "\n".join(filter(None, texts)), LANGUAGES[code]) else code


def _code_in_name(path: Path) -> str | None:
    for name in (path.name.split(".")[0], *(folder.name for folder in list(path.parents)[:_FOLDERS_SEARCHED])):
        parts = re.split(r"[\W_]+", name.lower())
        for part in (parts[0], parts[-1]):
            if part in LANGUAGES:
                return part
    return None


def source_of(source: Source) -> str:
    """Return the record's `source`, else the name of its file."""
    value = source.fields.get("source")
    return value if isinstance(value, str) else Path(source.path).name.split(".")[0]


def measure(records: Sequence[Source], languages: Sequence[str]) -> dict[tuple[str, str], Lengths]:
    """Return (language, source) -> lengths, in order of first appearance. UserError for a field that is no string."""
    groups: dict[tuple[str, str], Lengths] = {}
    for record, language in zip(records, languages, strict=True):
        prompt = record.text("instruction")
        if input := record.text("input", default=""):
            prompt = f"{prompt}\n{input}"
        group = groups.setdefault((language, source_of(record)), Lengths())
        group.add(prompt, record.text("output", default=""))
    return groups


def length_lines(groups: dict[tuple[str, str], Lengths]) -> Sequence[str]:
    """Return the lines of the table: a header, then one line per group."""
    width = max((len(source) for _, source in groups), default=0)
    width = max(width, len("source"))
    names = ("records", "prompt words", "characters", "response words", "characters")
    lines = [f"lang  {'source':{width}}  " + "  ".join(f"{name:>10}" for name in names)]
    for (language, source), lengths in groups.items():
        cells = [f"{lengths.records:>10,}"]
        cells += [
            f"{value:>{max(len(name), 10)},.1f}" for name, value in zip(names[1:], lengths.averages(), strict=True)
        ]
        lines.append(f"{language:4}  {source:{width}}  " + "  ".join(cells))
    return lines
