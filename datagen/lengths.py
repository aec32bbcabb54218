"""Average lengths of prompts and responses, by language and source (Table 2 of Lai et al. 2023, "Okapi").

A prompt is the instruction, a line break and the input, where there is one. Lengths are in Unicode words (in Chinese
each letter is one) and in characters: neither depends on a model's tokenizer, which would favour some languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datagen.sources import Source
from datagen.words import unicode_words
from engine.languages import LANGUAGES

UNKNOWN = "?"
_FOLDERS_LOOKED_AT = 2


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


def language_of(source: Source) -> str:
    """The record's `lang`, else a language code in its file's name or the two folders above it, else "?"."""
    if isinstance(source.fields.get("lang"), str):
        return source.fields["lang"]
    path = Path(source.path)
    for name in (path.name, *(folder.name for folder in list(path.parents)[:_FOLDERS_LOOKED_AT])):
        for part in re.split(r"[^a-z]+", name.lower()):
            if part in LANGUAGES:
                return part
    return UNKNOWN


def source_of(source: Source) -> str:
    """The record's `source`, else the name of its file."""
    value = source.fields.get("source")
    return value if isinstance(value, str) else Path(source.path).name.split(".")[0]


def measure(records: Iterable[Source]) -> dict[tuple[str, str], Lengths]:
    """(language, source) -> lengths, in the order of first appearance. UserError for a field that is no text."""
    groups: dict[tuple[str, str], Lengths] = {}
    for record in records:
        prompt = record.text("instruction")
        if input := record.text("input", default=""):
            prompt = f"{prompt}\n{input}"
        group = groups.setdefault((language_of(record), source_of(record)), Lengths())
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
