"""Average lengths of prompts and responses, by language and source (Table 2 of Lai et al. 2023, "Okapi").

A prompt is the instruction, a line break and the input, where there is one. Lengths are in Unicode words (in Chinese
each letter is one) and in characters: neither depends on a model's tokenizer, which would favour some languages.
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
_FOLDERS_LOOKED_AT = 2
_RECORDS_LOOKED_AT = 20  # of a file, for its language


@dataclass
class Lengths:
    """Sums over the records of one language and source."""

    records: int = 0
    prompt_words: int = 0
    prompt_characters: int = 0
    responses: int = 0  # that are not empty
    response_words: int = 0
    response_characters: int = 0

    def add(self, prompt: str, response: str) -> None:
        """Counts one record in."""
        self.records += 1
        self.prompt_words += len(unicode_words(prompt))
        self.prompt_characters += len(prompt)
        if response:
            self.responses += 1
            self.response_words += len(unicode_words(response))
            self.response_characters += len(response)

    def averages(self) -> tuple[float, float, float, float]:
        """Words and characters of a prompt, then of a response; 0 where there is none."""
        prompts, responses = max(self.records, 1), max(self.responses, 1)
        return (
            self.prompt_words / prompts,
            self.prompt_characters / prompts,
            self.response_words / responses,
            self.response_characters / responses,
        )


def languages_of(records: Sequence[Source]) -> list[str]:
    """The language of each record: its `lang`, else that of its file, else "?".

    A file is in the language whose code begins or ends its name, or that of one of the two folders above it, unless its
    texts are plainly in another: "it", "id" and "hr" are words too.
    """
    samples: dict[str, list[Source]] = {}
    for record in records:
        of_file = samples.setdefault(record.path, [])
        if len(of_file) < _RECORDS_LOOKED_AT and not isinstance(record.fields.get("lang"), str):
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
    for name in (path.name.split(".")[0], *(folder.name for folder in list(path.parents)[:_FOLDERS_LOOKED_AT])):
        parts = re.split(r"[\W_]+", name.lower())
        for part in (parts[0], parts[-1]):
            if part in LANGUAGES:
                return part
    return None


def source_of(source: Source) -> str:
    """The record's `source`, else the name of its file."""
    value = source.fields.get("source")
    return value if isinstance(value, str) else Path(source.path).name.split(".")[0]


def measure(records: Sequence[Source], languages: Sequence[str]) -> dict[tuple[str, str], Lengths]:
    """(language, source) -> lengths, in the order of first appearance. UserError for a field that is no text."""
    groups: dict[tuple[str, str], Lengths] = {}
    for record, language in zip(records, languages, strict=True):
        prompt = record.text("instruction")
        if input := record.text("input", default=""):
            prompt = f"{prompt}\n{input}"
        group = groups.setdefault((language, source_of(record)), Lengths())
        group.add(prompt, record.text("output", default=""))
    return groups


def length_lines(groups: dict[tuple[str, str], Lengths]) -> Sequence[str]:
    """The table, a line a group."""
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
