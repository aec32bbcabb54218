"""The judgements, one JSON line each in an append-only file: a line is on the disk before the page hears of it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.base.atomic import sync
from engine.base.errors import UserError
from engine.base.record_fields import BadField, short, text_of

RANK, SKIP, FLAG = "rank", "skip", "flag"
KINDS = (RANK, SKIP, FLAG)
MAX_NAME, MAX_NOTE, MAX_EDIT = 60, 2000, 100_000


@dataclass(frozen=True)
class Judgement:
    """What an annotator said about a prompt, for the `revision`-th time; the last revision counts.

    ranks   of a ranking, the rank of each answer in the order of the file, 1 the best, without gaps; otherwise empty
    edits   {index of an answer: its new text}
    shown   the indices of the answers in the order in which the annotator saw them
    note    why the prompt is flagged, perhaps ""
    """

    key: str
    annotator: str
    kind: str
    revision: int
    ranks: tuple[int, ...] = ()
    edits: Mapping[int, str] = field(default_factory=dict)
    shown: tuple[int, ...] = ()
    note: str = ""

    @property
    def said(self) -> tuple[Any, ...]:
        """Everything but the revision and the order shown: equal for the same judgement sent twice."""
        return self.key, self.annotator, self.kind, self.ranks, dict(self.edits), self.note


class Stale(Exception):
    """Somebody, perhaps another tab, has judged the prompt since the page read it."""


class Journal:
    """The judgements of a file, {(annotator, key): the last one}, and how to add one.

    Only one process may have it open. Damaged lines, such as a last line torn by a crash, are read past and counted.
    """

    def __init__(self, path: Path):
        """Read the file, creating it if there is none. UserError if another process has it open."""
        self.path, self.damaged = path, 0
        self.last: dict[tuple[str, str], Judgement] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by the context
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path} is open in another annotate.py: end that one, or name another --output") from None
        if is_new:
            sync(path.parent)
        self._file.seek(0)
        data = self._file.read()
        for line in data.split(b"\n"):
            if line.strip():
                self._read(line)
        self._is_torn = not data.endswith(b"\n") and bool(data)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def revision(self, annotator: str, key: str) -> int:
        """Return how often the annotator has judged the prompt."""
        last = self.last.get((annotator, key))
        return last.revision if last else 0

    def add(self, judgement: Judgement) -> None:
        """Append a judgement and wait until it is on the disk; one that was saved before changes nothing.

        Stale unless its revision follows the last one. OSError if the disk refuses; the judgement then does not count.
        """
        last = self.last.get((judgement.annotator, judgement.key))
        if last and last.revision == judgement.revision and last.said == judgement.said:
            return  # sent again because the reply was lost
        if judgement.revision != self.revision(judgement.annotator, judgement.key) + 1:
            raise Stale
        row = {**dataclasses.asdict(judgement), "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        was_torn, self._is_torn = self._is_torn, True  # until the whole line is there
        rest = memoryview(b"\n" + line if was_torn else line)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self._is_torn = False
        self.last[judgement.annotator, judgement.key] = judgement

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            edits = {int(k): str(text) for k, text in row["edits"].items()}
            judgement = Judgement(
                row["key"], row["annotator"], row["kind"], int(row["revision"]), tuple(row["ranks"]), edits,
                tuple(row["shown"]), row["note"],
            )  # fmt: skip
            self.last[judgement.annotator, judgement.key] = judgement
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damaged += 1


def name_of(value: Any) -> str:
    """Return an annotator's name without blanks around it. BadField if it is none."""
    name = " ".join(text_of("'annotator'", value, empty_is_allowed=False).split())
    if len(name) > MAX_NAME or not name.isprintable():
        raise BadField(f"field 'annotator' is {short(name)}: give a name of up to {MAX_NAME} letters")
    return name


def read_judgement(row: Mapping[str, Any], answers: Sequence[str]) -> Judgement:
    """Return the judgement that the page sent; its ranks become 1, 2, ... without gaps. BadField for a wrong field.

    `shown`, `ranks` and `edits` are lists in the order shown; an edit is null where the answer is unchanged.
    """
    kind, revision, shown = row.get("kind"), row.get("revision"), row.get("shown")
    if kind not in KINDS:
        raise BadField(f"field 'kind' is {short(kind)}: give {', '.join(KINDS)}")
    if type(revision) is not int or revision < 1:
        raise BadField(f"field 'revision' is {short(revision)}: give 1 or more")
    num_answers = len(answers)
    everything = list(range(num_answers))
    if not isinstance(shown, list) or any(type(k) is not int for k in shown) or sorted(shown) != everything:
        raise BadField(f"field 'shown' is {short(shown)}: give each of 0 to {num_answers - 1} once")
    ranks: tuple[int, ...] = ()
    edits: dict[int, str] = {}
    if kind == RANK:
        given = row.get("ranks")
        is_list = isinstance(given, list) and len(given) == num_answers
        if not is_list or any(type(rank) is not int or not 1 <= rank <= num_answers for rank in given):
            raise BadField(f"field 'ranks' is {short(given)}: give {num_answers} numbers from 1 to {num_answers}")
        dense = {rank: i for i, rank in enumerate(sorted(set(given)), 1)}
        rank_of = {k: dense[rank] for k, rank in zip(shown, given)}
        ranks = tuple(rank_of[k] for k in everything)
        texts = row.get("edits") or [None] * num_answers
        if not isinstance(texts, list) or len(texts) != num_answers:
            raise BadField(f"field 'edits' is {short(texts)}: give {num_answers} texts or nulls")
        for k, text in zip(shown, texts):
            if text is not None and text != answers[k]:
                edits[k] = text_of(f"'edits' of answer {k}", text, empty_is_allowed=True)[:MAX_EDIT]
    note = text_of("'note'", row.get("note", ""), empty_is_allowed=True)[:MAX_NOTE] if kind == FLAG else ""
    name, key = name_of(row.get("annotator")), text_of("'key'", row.get("key"), empty_is_allowed=False)
    return Judgement(key, name, kind, revision, ranks, edits, tuple(shown), note)
