"""Find the commands in the Markdown pages, check them with the programs' own parsers, and run the marked ones.

Every fenced `sh` block is parsed: its programs, flags, values and files must exist. An HTML comment above a block asks
for more:
    <!-- run -->          run it in the default tests, in a folder of this page, after the earlier blocks of the page
    <!-- slow -->         run it under `pytest -m slow`
    <!-- shows -->        a `text` block: the exact output of the last command
    <!-- shows part -->   a `text` block: some lines of that output
    <!-- said -->         a `text` block: messages of our code, with … for the variable parts
    <!-- file: NAME -->   any block: write its content to the file NAME
Square brackets in a command mark optional words; they are checked like the others.
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

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("kernels", "engine", "datagen", "evaluation", "launch", "tests", "ds_configs", "docs")
# Programs of others, whose flags are not checked.
OTHERS = {
    *("git", "cd", "pip", ".", "export", "curl", "tensorboard", "sbatch", "nvidia-smi", "df"),
    *("kill", "free", "ls", "cat", "ip", "ssh", "sudo", "apt-get", "wandb", "ulimit", "mkdir", "cp", "openssl"),
    *("head", "tail"),
}  # fmt: skip
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_WITHOUT_FLAGS = ("tests.files_table", "tests.golden.regenerate", "tests.played.records")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: number of its first line in the page."""

    page: Path
    line: int
    kind: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the page's fenced blocks in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["kind"], found["mark"] or "", found["text"])


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command: without comments and variable assignments, continued lines joined."""
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


class _FlagsRead(BaseException):
    """Raised once the program has read its flags, before it starts its work."""


def python_program(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return (file or "-m MODULE", arguments) of a command that starts Python; None for any other command."""
    head, *rest = words
    if head == "srun":
        return python_program(rest[rest.index("python") :])
    if head in ("deepspeed", "torchrun"):
        while rest and not rest[0].endswith(".py"):
            del rest[0]  # the launcher's own flags
        return rest[0], rest[1:]
    if head.rsplit("/")[-1] in ("python", "python3"):
        return (f"-m {rest[1]}", rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
    return None


def check(words: Sequence[str]) -> None:
    """Check a command: programs, files and flags must exist. AssertionError with the reason otherwise."""
    words = [word.strip("[]") for word in words if word.strip("[]")]
    for word in words:
        if word.split("/")[0] in ROOMS and "/" in word and "*" not in word:
            assert (ROOT / word).exists(), f"{word} does not exist"
    started = python_program(words)
    if started is None:
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert all("=" in w or w in targets for w in words[1:]), f"the Makefile has no target of {words[1:]}"
        else:
            assert words[0] in OTHERS, f"{words[0]} is not in OTHERS, the known programs"
        return
    name, arguments = started
    module = name.removeprefix("-m ")
    if module in ("pytest", "venv", "pip"):
        return
    if module in _WITHOUT_FLAGS:
        assert importlib.util.find_spec(module) and not arguments, f"{module} does not exist, or takes no flags"
        return
    if (ROOT / name).exists() or name.startswith("-m "):
        _read_flags(name, arguments)
    else:  # a file that the page itself defines; the job it starts checks the flags
        assert any(b.mark == f"file: {name}" for page in PAGES for b in blocks(page)), f"{name} does not exist"


def _read_flags(name: str, arguments: list[str]) -> None:
    """Start the program and stop it as soon as it has read its flags."""

    def then_stop(read: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*args: Any, **kwargs: Any) -> None:
            read(*args, **kwargs)
            raise _FlagsRead

        return stop

    if not name.startswith("-m "):  # import it first, so that no imported module keeps the patched parser
        importlib.import_module(name.removesuffix(".py").replace("/", "."))
    before = engine.cli.parse.parse_settings, argparse.ArgumentParser.parse_args
    engine.cli.parse.parse_settings, argparse.ArgumentParser.parse_args = map(then_stop, before)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            start(name, arguments)
    except _FlagsRead:
        return
    except SystemExit as stopped:
        assert stopped.code == 0 and "--help" in arguments, f"{name} refuses {arguments}: {output.getvalue().strip()}"
    finally:
        engine.cli.parse.parse_settings, argparse.ArgumentParser.parse_args = before


def start(name: str, arguments: Sequence[str]) -> None:
    """Run `python NAME ARGUMENTS` in this process, as `__main__`."""
    path, argv = [*sys.path], sys.argv
    sys.argv = [name, *arguments]
    sys.path[:0] = [str(ROOT)]
    os.environ.setdefault("COLUMNS", "120")
    try:
        if name.startswith("-m "):
            _run_module(name.removeprefix("-m "))
        else:
            runpy.run_path(name if Path(name).is_file() else str(ROOT / name), run_name="__main__")
    finally:
        sys.argv = argv
        sys.path[:] = path


def _run_module(name: str) -> None:
    """Run `python -m NAME`. runpy warns if a test has imported the module before, so hide that import for the time."""
    found = importlib.util.find_spec(name)
    if found and found.submodule_search_locations is not None:
        name += ".__main__"
    imported = sys.modules.pop(name, None)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=False)
    finally:
        if imported:
            sys.modules[name] = imported


def run(words: Sequence[str]) -> str:
    """Run a command in this process and working directory and return its output. AssertionError if it fails."""
    started = python_program(words)
    assert started is not None, f"only Python programs can be run, not {words[0]}"
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            start(*started)
    except SystemExit as stopped:
        assert not stopped.code, f"{words} ends with status {stopped.code}: {output.getvalue()}"
    return output.getvalue()
