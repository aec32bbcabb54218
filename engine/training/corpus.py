"""Text to train on, from disk: each file is tokenised once into a file of token ids, of which a step reads its rows.

A token file is the documents of a text file end to end, 4 bytes a token; the highest bit marks the first token of a
document. Row r of a file is `length` of its tokens from r * (length - 1) on, so that a row begins with the last token
of the row before it, and each token but the first of a document is predicted once. A row is split into sequences where
documents begin: documents never see each other. Memory holds one document while a file is tokenised, then the rows of
a step.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.atomic import whole_file, write_json
from engine.base.documents import read_documents
from engine.base.errors import UserError
from engine.base.mixture import Mixture, Source
from engine.base.strict_json import read_object
from engine.cli.console import Console
from engine.distributed.world import World
from engine.text.codec import codec_of
from engine.text.encoding import Example
from engine.text.tokenizer import encode_prompt

FIRST = 1 << 31  # the bit of a document's first token
_FIELDS = ("tokens", "documents", "digest")
_SLICE_SECONDS = 20.0  # between the times at which ranks that have nothing to tokenise hear from the others


@dataclass(frozen=True)
class Row:
    """The sequences of a row, of one token file."""

    id: str
    file: int
    examples: tuple[Example, ...]
    documents: int  # that begin in it

    @property
    def predicted(self) -> int:
        return sum(len(e.tokens) - 1 for e in self.examples)


@dataclass(frozen=True)
class TokenFile:
    """A tokenised file: where it is, and how much is in it."""

    name: str
    path: Path
    tokens: int
    documents: int
    digest: str  # of all its bytes

    def rows(self, length: int) -> int:
        """Return the number of rows of this length."""
        return -(-(self.tokens - 1) // (length - 1))

    def row(self, number: int, length: int, file: int) -> Row:
        """Read a row. UserError if the file was cut or removed."""
        start = number * (length - 1)
        count = min(length, self.tokens - start)
        try:
            words = np.fromfile(self.path, "<u4", count, offset=4 * start)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): start again with --resume") from error
        if len(words) != count:
            raise UserError(f"{self.path} was cut while the run read it: delete it, --resume writes it again")
        first = np.flatnonzero(words & FIRST)
        ids = (words & (FIRST - 1)).tolist()
        bounds = sorted({0, *first.tolist(), count})
        parts = [tuple(ids[a:b]) for a, b in zip(bounds, bounds[1:]) if b - a > 1]
        name = f"{self.name}:{number}"
        begun = len(first) - int(count > 1 and bool(words[-1] & FIRST) and start + count < self.tokens)
        return Row(name, file, tuple(Example(f"{name}.{i}", part, 1) for i, part in enumerate(parts)), begun)


class Corpus(Sequence[Row]):
    """The rows of several token files, those of the first file first; read from disk when asked for."""

    def __init__(self, sources: Sequence[Source], files: Sequence[TokenFile], length: int):
        self.files, self.length = tuple(files), length
        self.mixture = Mixture(tuple(sources), tuple(file.rows(length) for file in files))
        self._firsts = [0, *accumulate(self.mixture.counts)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, i: int) -> Row:
        f = bisect_right(self._firsts, i) - 1
        return self.files[f].row(i - self._firsts[f], self.length, f)

    @property
    def digest(self) -> str:
        """A digest of all tokens and of how they are cut into rows."""
        return hashlib.sha256(repr((self.length, [file.digest for file in self.files])).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HeldOutText:
    """The sequences of a held-out file, in memory: whole documents, each cut where it is too long."""

    name: str
    path: str
    examples: tuple[Example, ...]
    bytes: tuple[int, ...]  # of the text by sequence: those of a document stand with its first one
    documents: int

    @classmethod
    def read(cls, name: str, path: str, tokenizer: Any, length: int, most_tokens: int) -> HeldOutText:
        """Read documents from the start of a file, up to most_tokens but at least one."""
        start, examples, sizes, documents, tokens = start_of(tokenizer), [], [], 0, 0
        for text in read_documents(path):
            ids = [*start, *encode_prompt(tokenizer, text)]
            if documents and tokens + len(ids) > most_tokens:
                break
            for n, at in enumerate(range(0, len(ids) - 1, length - 1)):
                examples.append(Example(f"{name}:{documents}.{n}", tuple(ids[at : at + length]), 1))
                sizes.append(0 if n else len(text.encode()))
            tokens, documents = tokens + len(ids), documents + 1
        return cls(name, path, tuple(examples), tuple(sizes), documents)


def start_of(tokenizer: Any) -> list[int]:
    """Return what stands before a document so that its first token is predicted: nothing more if the tokenizer adds
    BOS, else EOS, which base models without BOS have seen between documents.
    """
    return [] if codec_of(tokenizer).bos else [tokenizer.eos_token_id]


def names_of_files(paths: Sequence[str]) -> list[str]:
    """Return a short name for each file, its own up to the first dot; with its number where two would be equal."""
    stems = [re.sub(r"[^\w-]", "_", Path(path).name.split(".")[0]) or "file" for path in paths]
    return [f"{stem}-{n}" if stems.count(stem) > 1 else stem for n, stem in enumerate(stems, start=1)]


def tokenise(
    sources: Sequence[Source], tokenizer: Any, folder: Path, world: World, console: Console
) -> list[TokenFile]:
    """Return the token files of text files; write those that `folder` does not have. The ranks share the files.

    UserError for a fault of a text file (engine/base/documents.py), and if the folder cannot be written or is not
    shared.
    """
    names = names_of_files([source.path for source in sources])
    paths = [folder / f"{name}-{_key(source.path, tokenizer)}.bin" for name, source in zip(names, sources)]
    missing = [f for f, path in enumerate(paths) if not path.with_suffix(".json").is_file()]
    for f in missing:
        next(read_documents(sources[f].path))  # a file that cannot be read at all is found before hours of work
    if missing:
        console.say(f"text: tokenising {', '.join(sources[f].path for f in missing)} into {folder}")
    missing = world.gather(missing)[0]
    world.at("tokenising text")
    mine = missing[world.rank :: world.size]
    _together(world, (done for f in mine for done in _write(sources[f].path, tokenizer, paths[f])))
    world.at(None)
    return [_open(name, path) for name, path in zip(names, paths)]


def _key(path: str, tokenizer: Any) -> str:
    """Name what the tokens of a file depend on: the file as it is now, and the tokenizer."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    parts = (os.path.realpath(path), state.st_size, state.st_mtime_ns, start_of(tokenizer), tokenizer.eos_token_id)
    rules = tokenizer.backend_tokenizer.to_str() + repr(codec_of(tokenizer).bos)
    return hashlib.sha256((repr(parts) + rules).encode()).hexdigest()[:16]


def _write(source: str, tokenizer: Any, path: Path) -> Iterator[None]:
    """Write a token file, then its counts beside it, which make it valid. Yields after every document."""
    start, end = start_of(tokenizer), tokenizer.eos_token_id
    tokens, documents, digest = 0, 0, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            for text in read_documents(source):
                words = np.array([*start, *encode_prompt(tokenizer, text), end], "<u4")
                words[0] |= FIRST
                data = words.tobytes()
                file.write(data)
                digest.update(data)
                tokens, documents = tokens + len(words), documents + 1
                yield
        counts = (tokens, documents, digest.hexdigest()[:16])
        write_json(path.with_suffix(".json"), dict(zip(_FIELDS, counts)))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}), a token takes 4 bytes there: free some space, or choose "
            "another folder with --token-cache"
        ) from error


def _together(world: World, work: Iterator[None]) -> None:
    """Do this rank's work, and wait for the others in turns that are short enough for the limits on a collective."""
    finished = False
    while True:
        end = time.monotonic() + _SLICE_SECONDS
        for _ in work:
            if time.monotonic() > end:
                break
        else:
            finished = True
        world.tick()
        if all(world.gather(finished)):
            return


def _open(name: str, path: Path) -> TokenFile:
    counts = path.with_suffix(".json")
    if not counts.is_file():
        raise UserError(f"{counts} is not seen by every rank: put --token-cache on a file system that all hosts share")
    found = read_object(counts, "delete it to tokenise the file again")
    size = path.stat().st_size if path.is_file() else 0
    if any(name not in found for name in _FIELDS) or size != 4 * found["tokens"]:
        raise UserError(f"{path} does not fit {counts.name}: delete both to tokenise the file again")
    return TokenFile(name, path, *(found[field] for field in _FIELDS))
