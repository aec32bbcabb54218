"""Read and encode the files of --data, one after the other, and remember which records came from which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.base.errors import UserError
from engine.base.mixture import Mixture, Source, with_unique_ids


def read_sources(read: Callable[[str], list[Any]], sources: Sequence[Source]) -> list[list[Any]]:
    """Return the records of each file, with ids that are unique over all files."""
    return with_unique_ids(sources, [read(source.path) for source in sources])


def encode_sources(
    sources: Sequence[Source], parts: Sequence[Sequence[Any]], encode: Callable[[Sequence[Any]], list[Any]]
) -> tuple[list[Any], Mixture]:
    """Return all encoded records, and the mixture they are drawn from. UserError names the file of a mistake."""
    encoded = []
    for source, part in zip(sources, parts):
        try:
            encoded.append(encode(part))
        except UserError as error:
            raise error if len(sources) == 1 else UserError(f"{source.path}: {error}") from None
    return [x for part in encoded for x in part], Mixture(tuple(sources), tuple(map(len, encoded)))
