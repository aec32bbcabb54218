"""Where benchmark records come from: a folder of JSON files in Okapi's layout, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects

# The same part under the names that the releases give it; the first that is there is read.
PARTS = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
    "dev": ("dev", "train"),
}
_SUFFIXES = (".json", ".jsonl", ".jsonl.gz")
_HUB_OWNER = "alexandrainst"


@dataclass(frozen=True)
class Source:
    """One file that was read: its name under the data folder, the SHA-256 of its bytes, how many records it has."""

    name: str
    sha256: str
    num_records: int


@dataclass(frozen=True)
class Records:
    """The records of one part, each with its place ("FILE:LINE")."""

    source: Source
    rows: list[tuple[str, dict[str, Any]]]


class Data(Protocol):
    """A place that has benchmark records."""

    def has(self, folder: str, lang: str, part: str) -> bool: ...

    def read(self, folder: str, lang: str, part: str) -> Records: ...

    def missing(self, folder: str, lang: str, part: str, instead: str) -> str: ...


def open_data(where: str | Path) -> Data:
    """ "hub", or a folder that holds m_arc/ne_test.json and its like. UserError where it is neither."""
    if str(where) == "hub":
        return HubData()
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is no folder: give the one that holds m_arc, m_mmlu and so on, or hub")
    return LocalData(folder)


@dataclass(frozen=True)
class LocalData:
    """Files FOLDER/<benchmark>/<lang>_<part>.json, .jsonl or .jsonl.gz."""

    folder: Path

    def has(self, folder: str, lang: str, part: str) -> bool:
        return self._find(folder, lang, part) is not None

    def read(self, folder: str, lang: str, part: str) -> Records:
        """UserError, naming the files there are, where this one is missing."""
        path = self._find(folder, lang, part)
        if path is None:
            raise UserError(self.missing(folder, lang, part))
        rows = [(f"{path}:{line}", _without_nulls(record)) for line, record in iterate_objects(path)]
        name = path.relative_to(self.folder).as_posix()
        return Records(Source(name, hashlib.sha256(path.read_bytes()).hexdigest(), len(rows)), rows)

    def _find(self, folder: str, lang: str, part: str) -> Path | None:
        paths = (
            self.folder / folder / f"{lang}_{name}{suffix}" for name in PARTS.get(part, (part,)) for suffix in _SUFFIXES
        )
        return next((path for path in paths if path.is_file()), None)

    def missing(self, folder: str, lang: str, part: str, instead: str = "") -> str:
        """What to say where this file is missing: which there are, and what to do instead of fetching it."""
        wanted = self.folder / folder / f"{lang}_{part}.json"
        there = sorted(path.name for path in (self.folder / folder).glob(f"{lang}_*"))
        known = sorted({path.name.split("_")[0] for path in (self.folder / folder).glob("*_*.json*")})
        about, default = "", f"give --data-dir the folder that holds {folder}"
        if there:
            about, default = f": there is {', '.join(there)}", "name another with --split"
        elif known:
            about, default = f": {folder} has {', '.join(known)}", "choose another --lang"
        fetch = "; fetch it" if about else ": fetch it"
        return f"{wanted} is not there{about}{fetch}, or {instead or default}"


@dataclass(frozen=True)
class HubData:
    """The same records from the Hugging Face hub (alexandrainst/m_arc and its siblings), by the datasets library."""

    def has(self, folder: str, lang: str, part: str) -> bool:
        return any(name in self._splits(folder, lang) for name in PARTS.get(part, (part,)))

    def read(self, folder: str, lang: str, part: str) -> Records:
        """UserError where the library is not installed, or the hub does not answer."""
        name, splits = f"{_HUB_OWNER}/{folder}", self._splits(folder, lang)
        split = next((known for known in PARTS.get(part, (part,)) if known in splits), None)
        if split is None:
            raise UserError(self.missing(folder, lang, part))
        with _one_line(folder, lang):
            rows = [_without_nulls(row) for row in _library().load_dataset(name, lang, split=split)]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        place = f"{name}/{lang}/{split}"
        return Records(Source(place, digest, len(rows)), [(f"{place}:{n}", row) for n, row in enumerate(rows, start=1)])

    def missing(self, folder: str, lang: str, part: str, instead: str = "") -> str:
        """As of LocalData."""
        there = ", ".join(self._splits(folder, lang))
        name = f"{_HUB_OWNER}/{folder}"
        return f"{name} has no part {part!r} in {lang}: it has {there}; {instead or 'name one with --split'}"

    def _splits(self, folder: str, lang: str) -> list[str]:
        with _one_line(folder, lang):
            return _library().get_dataset_split_names(f"{_HUB_OWNER}/{folder}", lang)


@contextmanager
def _one_line(folder: str, lang: str) -> Iterator[None]:
    """What the hub or the way to it refuses, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        place = f"{_HUB_OWNER}/{folder} ({lang})"
        raise UserError(f"{place} cannot be read: {reason}; go online, or give --data-dir a folder") from error


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("--data-dir hub needs the datasets library: pip install datasets, or give a folder") from None
    return datasets


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}
