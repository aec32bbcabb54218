"""Pretraining text: documents of record files with a field `text`, and of plain text files, split at blank lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects
from engine.base.record_fields import BadField, text_of

_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def read_documents(path: str) -> Iterator[str]:
    """Yield the documents of a file, in order. UserError, with the line, for a record without text; for an empty file.

    In a `.txt` file, blank lines end a document; its own line breaks stay.
    """
    if path.endswith(".txt"):
        yield from _plain(Path(path))
        return
    if not path.endswith((".jsonl", ".jsonl.gz", ".json")):
        raise UserError(f"cannot read {path}: text comes in .txt, .jsonl, .jsonl.gz or .json files")
    for line, fields in iterate_objects(Path(path)):
        try:
            if "text" not in fields:
                raise BadField(f"field 'text' is missing (fields: {', '.join(fields)[:60] or 'none'}): add it")
            yield text_of("'text'", fields["text"], empty_is_allowed=False)
        except BadField as bad:
            raise UserError(f"{path}:{line}: {bad}") from None


def _plain(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    documents = [document.strip("\n") for document in _BLANK_LINES.split(text) if document.strip()]
    if not documents:
        raise UserError(f"{path} holds no text: give a file with some")
    yield from documents
