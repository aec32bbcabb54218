"""Aya's pairs (Singh et al. 2024): {inputs, targets, language}, with language_code and more in the human-made part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datagen.published.entries import OTHER_LANGUAGE, Entry, id_of, instruction, is_named
from datagen.sources import Source
from engine.base.languages import Language


def read(sources: Iterable[Source], language: Language) -> Iterator[Entry]:
    """Yield an instruction record, or the reason to leave it out, for each pair."""
    for number, source in enumerate(sources, 1):
        inputs, targets = source.text("inputs"), source.text("targets")
        named = [source.text("language")]
        if "language_code" in source.fields:
            named.append(source.text("language_code"))
        if any(is_named(name, language) for name in named):
            yield instruction(id_of(source, number, "aya", "id"), inputs, "", targets)
        else:
            yield OTHER_LANGUAGE
