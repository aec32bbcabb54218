"""Okapi's published files (Lai et al. 2023): Alpaca's fields, or pairs {prefered_output, rejected_output}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datagen.published import alpaca
from datagen.published.entries import OTHER_LANGUAGE, Entry, fields_of, id_of, ranking, seems_named, wrong
from datagen.sources import Source
from engine.base.languages import Language


def read(sources: Iterable[Source], language: Language) -> Iterator[Entry]:
    """Yield an instruction or ranking record, or the reason to leave it out, for each record."""
    for number, source in enumerate(sources, 1):
        fields = source.fields
        if "prefered_output" in fields or "rejected_output" in fields:
            better, worse = source.text("prefered_output"), source.text("rejected_output")
            ranked = [(better, 1), (worse, 2)]
        elif "responses" in fields or "ranks" in fields:
            ranked = _ranked(source)
        elif "output" in fields:
            yield alpaca.entry(source, number, "okapi", language)
            continue
        else:
            what = "'output', or 'prefered_output' and 'rejected_output'"
            raise wrong(source, f"the fields are {fields_of(source)}: a record of Okapi has {what}")
        asked, input = source.text("instruction"), source.text("input", "")
        if seems_named(source, [ranked[0][0]], language):
            yield ranking(id_of(source, number, "okapi", "id"), asked, input, ranked)
        else:
            yield OTHER_LANGUAGE


def _ranked(source: Source) -> list[tuple[str, int]]:
    """Return the (answer, rank) of a record with `responses` and `ranks`."""
    answers, ranks = source.fields.get("responses"), source.fields.get("ranks")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise wrong(source, f"field 'responses' is {answers!r:.60}: it must be a list of strings")
    if not isinstance(ranks, list) or len(ranks) != len(answers) or not all(type(rank) is int for rank in ranks):
        raise wrong(source, f"field 'ranks' is {ranks!r:.60}: it must be {len(answers)} whole numbers")
    return list(zip(answers, ranks))
