"""Read benchmark records from a folder of JSON files in Okapi's layout, or from the Hugging Face hub."""

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
from evaluation.data.sets import SETS, published_files

# Part -> the names that the releases use for it. The first name with a file is read.
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
    """A file that was read: its name relative to the data folder, the SHA-256 of its bytes, its number of records."""

    name: str
    sha256: str
    num_records: int


@dataclass(frozen=True)
class Records:
    """The records of one part. rows: (place, record), where place is "FILE:LINE"."""

    source: Source
    rows: list[tuple[str, dict[str, Any]]]


class Data(Protocol):
    """A source of benchmark records: a local folder or the hub.

    has              whether the part exists in this language
    read             the records of the part; UserError where they cannot be read
    missing_message  the error message for a missing part; `instead` replaces its default next step
    """

    def has(self, folder: str, lang: str, part: str) -> bool: ...

    def read(self, folder: str, lang: str, part: str) -> Records: ...

    def missing_message(self, folder: str, lang: str, part: str, instead: str) -> str: ...


def open_data(where: str | Path) -> Data:
    """Open "hub", or a folder that holds files such as m_arc/ne_test.json. UserError for anything else."""
    if str(where) == "hub":
        return HubData()
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is no folder: give the folder that holds m_arc and m_mmlu, or hub")
    return LocalData(folder)


@dataclass(frozen=True)
class LocalData:
    """Records in files FOLDER/<benchmark>/<lang>_<part>.json, .jsonl or .jsonl.gz, or under the set's own name."""

    folder: Path

    def has(self, folder: str, lang: str, part: str) -> bool:
        return self._find(folder, lang, part) is not None

    def read(self, folder: str, lang: str, part: str) -> Records:
        """Return the records of one file. Where it is missing, UserError lists the files that exist."""
        path = self._find(folder, lang, part)
        if path is None:
            raise UserError(self.missing_message(folder, lang, part))
        rows = [(f"{path}:{line}", _without_nulls(record)) for line, record in iterate_objects(path)]
        name = path.relative_to(self.folder).as_posix()
        return Records(Source(name, hashlib.sha256(path.read_bytes()).hexdigest(), len(rows)), rows)

    def _find(self, folder: str, lang: str, part: str) -> Path | None:
        paths = (
            self.folder / folder / f"{lang}_{name}{suffix}" for name in PARTS.get(part, (part,)) for suffix in _SUFFIXES
        )
        own = (self.folder / folder / name for name in published_files(folder, lang, part))
        return next((path for path in (*paths, *own) if path.is_file()), None)

    def missing_message(self, folder: str, lang: str, part: str, instead: str = "") -> str:
        """Return the error message for a missing file: it lists the files that exist, or the languages.

        instead  the next step besides downloading the file; by default it depends on what exists
        """
        path = self.folder / folder / f"{lang}_{part}.json"
        found = sorted(path.name for path in (self.folder / folder).glob(f"{lang}_*"))
        langs = sorted({path.name.split("_")[0] for path in (self.folder / folder).glob("*_*.json*")})
        about, default = "", f"give --data-dir the folder that holds {folder}"
        if found:
            about, default = f": found {', '.join(found)}", "choose another part with --split"
        elif langs:
            about, default = f": {folder} has {', '.join(langs)}", "choose another --lang"
        download = "; download it" if about else ": download it"
        return f"{path} does not exist{about}{download}, or {instead or default}"


@dataclass(frozen=True)
class HubData:
    """The same records from the Hugging Face hub (alexandrainst/m_arc and others), by the datasets library."""

    def has(self, folder: str, lang: str, part: str) -> bool:
        return any(name in self._splits(folder, lang) for name in PARTS.get(part, (part,)))

    def read(self, folder: str, lang: str, part: str) -> Records:
        """Return the records of one split.

        UserError if the datasets library is not installed, the split does not exist, or the hub does not answer.
        """
        name, splits = f"{_HUB_OWNER}/{folder}", self._splits(folder, lang)
        split = next((known for known in PARTS.get(part, (part,)) if known in splits), None)
        if split is None:
            raise UserError(self.missing_message(folder, lang, part))
        with _errors_in_one_line(folder, lang):
            rows = [_without_nulls(row) for row in _library().load_dataset(name, lang, split=split)]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        place = f"{name}/{lang}/{split}"
        return Records(Source(place, digest, len(rows)), [(f"{place}:{n}", row) for n, row in enumerate(rows, start=1)])

    def missing_message(self, folder: str, lang: str, part: str, instead: str = "") -> str:
        """Return the error message for a missing part: it lists the parts that exist."""
        splits = ", ".join(self._splits(folder, lang))
        name = f"{_HUB_OWNER}/{folder}"
        return f"{name} has no part {part!r} in {lang}: it has {splits}; {instead or 'choose one with --split'}"

    def _splits(self, folder: str, lang: str) -> list[str]:
        if folder in SETS and not folder.startswith("m_"):
            raise UserError(f"{folder} is read from files only: give --data-dir the folder that holds {folder}")
        with _errors_in_one_line(folder, lang):
            return _library().get_dataset_split_names(f"{_HUB_OWNER}/{folder}", lang)


@contextmanager
def _errors_in_one_line(folder: str, lang: str) -> Iterator[None]:
    """Raise errors of the hub and of the network as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        place = f"{_HUB_OWNER}/{folder} ({lang})"
        raise UserError(f"{place} cannot be read: {reason}; check the network, or give --data-dir a folder") from error


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("--data-dir hub needs the datasets library: pip install datasets, or give a folder") from None
    return datasets


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}
