"""Commands in the Markdown pages: found, read by the programs' own parsers, and the marked ones run.

A fenced `sh` block is parsed: its programs, flags, values and files must exist. An HTML comment above a block asks for
more:
    <!-- run -->          run by the default tests, in a folder of the page's own, after the page's blocks before it
    <!-- slow -->         the same, under `pytest -m slow`
    <!-- shows -->        a `text` block: the last command run printed exactly this
    <!-- shows part -->   a `text` block: it printed these lines, among others
    <!-- said -->         a `text` block: messages of ours, with … for what they name
    <!-- file: NAME -->   any block: its content is written to NAME first
Square brackets in a command mark what may be left out; it is read as if given.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine.cli.parse
import launch.common

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("kernels", "engine", "datagen", "evaluation", "launch", "tests", "ds_configs", "docs")
# Programs that are not ours: nothing to look up.
OTHERS = {
    *("git", "cd", "pip", ".", "export", "curl", "tensorboard", "sbatch", "nvidia-smi", "df"),
    *("kill", "free", "ls", "cat", "ip", "ssh", "sudo", "apt-get", "wandb", "ulimit", "mkdir", "cp", "openssl"),
}  # fmt: skip
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_WITHOUT_FLAGS = ("tests.files_table", "tests.golden.regenerate")


@dataclass(frozen=True)
class Block:
    """A fenced block; line is that of its first line in the page."""

    page: Path
    line: int
    kind: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The page's fenced blocks, in their order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["kind"], found["mark"] or "", found["text"])


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command: comments, continued lines, `;` and `&&`, and variables before a program are read."""
    for line in block.text.replace("\\\n", " ").split("\n"):
        reader = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        reader.whitespace_split, reader.commenters = True, "#"
        words: list[str] = []
        for word in [*reader, ";"]:
            if word in (";", "&&", "&", "|"):
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


class _ReadToTheEnd(BaseException):
    """The program has read its flags and would start its work now."""


def program(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """(file or module, its arguments) of a command that starts Python; None for any other."""
    head, *rest = words
    if head == "srun":
        return program(rest[rest.index("python") :])
    if head in ("deepspeed", "torchrun"):
        while rest and not rest[0].endswith(".py"):
            del rest[0]  # the launcher's own flags
        return rest[0], rest[1:]
    if head.rsplit("/")[-1] in ("python", "python3"):
        return (f"-m {rest[1]}", rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
    return None


def check(words: Sequence[str]) -> None:
    """AssertionError, saying why, for a command that cannot be right."""
    words = [word.strip("[]") for word in words if word.strip("[]")]
    for word in words:
        if word.split("/")[0] in ROOMS and "/" in word and "*" not in word:
            assert (ROOT / word).exists(), f"{word} is not there"
    started = program(words)
    if started is None:
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert all("=" in w or w in targets for w in words[1:]), f"the Makefile has no target of {words[1:]}"
        else:
            assert words[0] in OTHERS, f"{words[0]} is no program these pages use"
        return
    name, arguments = started
    module = name.removeprefix("-m ")
    if module in ("pytest", "venv", "pip"):
        return
    if module in _WITHOUT_FLAGS:
        assert importlib.util.find_spec(module) and not arguments, f"{module} is not there, or takes no flags"
        return
    if (ROOT / name).exists() or name.startswith("-m "):
        _read_flags(name, arguments)
    else:  # a file that the page itself gives: its flags are those of the job it starts
        assert any(b.mark == f"file: {name}" for page in PAGES for b in blocks(page)), f"{name} is not there"


def _read_flags(name: str, arguments: list[str]) -> None:
    """Start the program up to where it has read its flags."""

    def then_stop(read: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*args: Any, **kwargs: Any) -> None:
            read(*args, **kwargs)
            raise _ReadToTheEnd

        return stop

    if not name.startswith("-m "):  # what it imports must not keep the function that stops
        importlib.import_module(name.removesuffix(".py").replace("/", "."))
    # launch.common has its own name for the function.
    places = (
        (engine.cli.parse, "parse_settings"), (launch.common, "parse_settings"),
        (argparse.ArgumentParser, "parse_args"),
    )  # fmt: skip
    before = [getattr(place, attribute) for place, attribute in places]
    for (place, attribute), read in zip(places, before):
        setattr(place, attribute, then_stop(read))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            start(name, arguments)
    except _ReadToTheEnd:
        return
    except SystemExit as stopped:
        assert stopped.code == 0 and "--help" in arguments, f"{name} refuses {arguments}: {said.getvalue().strip()}"
    finally:
        for (place, attribute), read in zip(places, before):
            setattr(place, attribute, read)


def start(name: str, arguments: Sequence[str]) -> None:
    """Run `python NAME ARGUMENTS` in this process, under the name of a program that was started."""
    path, argv = [*sys.path], sys.argv
    sys.argv = [name, *arguments]
    sys.path[:0] = [str(ROOT)]
    os.environ.setdefault("COLUMNS", "120")
    try:
        if name.startswith("-m "):
            runpy.run_module(name.removeprefix("-m "), run_name="__main__", alter_sys=False)
        else:
            runpy.run_path(name if Path(name).is_file() else str(ROOT / name), run_name="__main__")
    finally:
        sys.argv = argv
        sys.path[:] = path


def run(words: Sequence[str]) -> str:
    """What a command prints, in this process and the working directory; AssertionError unless it ends with status 0."""
    started = program(words)
    assert started is not None, f"only Python is run, not {words[0]}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            start(*started)
    except SystemExit as stopped:
        assert not stopped.code, f"{words} ends with status {stopped.code}: {said.getvalue()}"
    return said.getvalue()
