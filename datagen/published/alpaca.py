"""Alpaca's records (Taori et al. 2023) and their translations: {instruction, input, output}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datagen.published.entries import OTHER_LANGUAGE, Entry, id_of, instruction, seems_named
from datagen.sources import Source
from engine.base.languages import Language


def read(sources: Iterable[Source], language: Language) -> Iterator[Entry]:
    """Yield an instruction record, or the reason to leave it out, for each record."""
    for number, source in enumerate(sources, 1):
        yield entry(source, number, "alpaca", language)


def entry(source: Source, number: int, name: str, language: Language) -> Entry:
    """Return one record, or the reason to leave it out. The answer alone decides its language: tasks often quote."""
    asked, input, output = source.text("instruction"), source.text("input", ""), source.text("output")
    if not seems_named(source, [output], language):
        return OTHER_LANGUAGE
    return instruction(id_of(source, number, name, "id"), asked, input, output)
