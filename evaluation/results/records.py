"""Records: one JSON line per document, appended while a run scores, so that it can be killed, and sorted at its end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.jsonl import write_objects
from evaluation.results.stored import read_record
from evaluation.scoring.documents import Document
from evaluation.scoring.metrics import NORMS, argmax, chance, document_scores, margin, normalized

PARTS = "parts"
Write = Callable[[dict[str, Any]], None]


def record_of(document: Document, lls: Sequence[float], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the record of a document. It has all that is needed to compute every metric again."""
    choices = document.choices
    ranked = {metric: normalized(document, lls, metric) for metric in metrics if metric in NORMS}
    return {
        "id": document.id,
        "index": document.index,
        **({"subject": document.subject} if document.subject is not None else {}),
        **({"subset": document.subset} if document.subset is not None else {}),
        "gold": document.gold,
        "lls": list(lls),
        "predictions": {metric: argmax(values) for metric, values in ranked.items()},
        "margins": {metric: margin(values) for metric, values in ranked.items()},
        "ties": {metric: margin(values) == 0 for metric, values in ranked.items()},
        "scores": document_scores(document, lls, metrics),
        "chance": chance(document, metrics[0]),
        "shot_ids": document.shot_ids,
        "context_sha256": hashlib.sha256(document.prompt.encode()).hexdigest(),
        "ids_sha256": ids_sha256([document]),
        "tokens": [len(choice.continuation_ids) for choice in choices],
        "characters": [choice.characters for choice in choices],
        "bytes": [choice.bytes for choice in choices],
        "truncated": [choice.truncated for choice in choices],
    }


def ids_sha256(documents: Iterable[Document]) -> str:
    """Return the SHA-256 of the scored token ids: for each choice both lengths, the context, the continuation."""
    digest = hashlib.sha256()
    for document in documents:
        for choice in document.choices:
            sizes = (len(choice.context_ids), len(choice.continuation_ids))
            digest.update(np.asarray((*sizes, *choice.context_ids, *choice.continuation_ids), dtype="<i4").tobytes())
    return digest.hexdigest()


def prompts_sha256(documents: Iterable[Document]) -> str:
    """Return the SHA-256 of the texts: for each document its id, the prompt and the choices."""
    digest = hashlib.sha256()
    for document in documents:
        texts = (document.id, document.prompt, *(choice.text for choice in document.choices))
        digest.update(json.dumps(texts, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


class RecordFile:
    """The file OUT/<task>.<lang>.jsonl, and its parts while it is unfinished.

    Each rank appends lines to its own part, so that a kill loses at most one line per rank. A resumed run reads all
    parts, whatever its number of ranks. `merge` sorts them by `index` into the file. Its bytes do not depend on ranks,
    batches or kills.
    """

    def __init__(self, output: Path, task: str, lang: str):
        self.path = output / f"{task}.{lang}.jsonl"
        self.folder = output / PARTS
        self._stem = f"{task}.{lang}.rank"

    @property
    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self._stem}*.jsonl"))

    def done(self, metrics: Collection[str] = ()) -> dict[int, dict[str, Any]]:
        """Return the finished records by index. Ignore a last line that was cut short.

        UserError, with file and line, for a line that is not a record or lacks the score of a metric.
        """
        records: dict[int, dict[str, Any]] = {}
        for file in [self.path] if self.path.is_file() else self._parts:
            for number, line in enumerate(_whole_lines(file), 1):
                record = read_record(line, f"{file}:{number}", metrics)
                records[record["index"]] = record
        return records

    def append(self, rank: int) -> AbstractContextManager[Write]:
        return _appending(self.folder / f"{self._stem}{rank}.jsonl")

    def merge(self, metrics: Collection[str] = ()) -> list[dict[str, Any]]:
        """Write the file from its parts, delete the parts, and return all records in order of index."""
        records = [record for _, record in sorted(self.done(metrics).items())]
        if not self.path.is_file():
            write_objects(self.path, records)
        for part in self._parts:
            part.unlink()
        return records


@contextmanager
def _appending(path: Path) -> Iterator[Write]:
    """Open a part for appending, without a last line that was cut short. Yield a function that writes and flushes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = sum(len(line) + 1 for line in _whole_lines(path)) if path.is_file() else 0
    with open(path, "ab") as file:
        file.truncate(whole)

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()

        yield write
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]
