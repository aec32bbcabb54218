"""Tests of the Markdown pages: commands parse, marked ones run, quoted messages match, links and paths exist."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOMS, ROOT, Block, blocks, check, commands, run
from tests.launch import small

MARKS = {"run", "slow", "shows", "shows part", "said"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[\w-]+)?\)")
_PATH = re.compile(rf"`((?:{'|'.join(ROOMS)})/[\w./{{}},*-]+)`")


@pytest.fixture(scope="module", autouse=True)
def alone():
    with small.alone():
        yield


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "sh"], ids=str)
def test_commands_parse(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(block):
        check(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        "deepspeed launch/sft.py --lang ne --max-lenght 9",
        "deepspeed launch/sft.py --lang xx --lr fast",
        "python launch/plan.py --stage kto",
        "python launch/no_such.py --lang ne",
        "deepspeed launch/ppo.py --lang ne --deepspeed_config ds_configs/zero9.json",
        "python -m datagen translat --lang ne",
        "LOCAL_SIZE=1 python -m datagen translate --lang ne --data a --output b --bugdet 5",
        "python -m kernels.linear_logprob.bench --dtipe float32",
        "python -m evaluation repot runs/x",
        "python -m engine.report --out x",
        "make demos",
        "frobnicate --all",
    ],
)
def test_wrong_command_is_found(wrong):
    (words,) = commands(Block(Path("x.md"), 1, "sh", "", wrong + "  # outdated"))
    with pytest.raises(AssertionError):
        check(words)


def test_every_mark_is_known():
    odd = [str(b) for b in BLOCKS if b.mark and b.mark not in MARKS and not b.mark.startswith("file: ")]
    assert not odd, odd


def follow(page: Path, marks: set[str]) -> None:
    """Run a page's marked blocks in order and compare the outputs."""
    shown = None
    for block in blocks(page):
        if block.mark.startswith("file: "):
            file = Path(block.mark.removeprefix("file: "))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.mark in ("run", "slow"):
            shown = "".join([run(words) for words in commands(block)]) if block.mark in marks else None
        elif block.mark == "shows" and shown is not None:
            assert block.text.split() == shown.split(), f"{block} differs from the output:\n{shown}"
        elif block.mark == "shows part" and shown is not None:
            printed = {" ".join(line.split()) for line in shown.split("\n")}
            missing = [line for line in block.text.split("\n") if " ".join(line.split()) not in printed]
            assert not missing, f"{block}: {missing} is missing in the output:\n{shown}"


def pages_with(mark: str) -> list[Path]:
    return [page for page, group in itertools.groupby(BLOCKS, lambda b: b.page) if any(b.mark == mark for b in group)]


@pytest.mark.parametrize("page", pages_with("run"), ids=lambda page: page.name)
def test_run_commands_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow(page, {"run"})


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"), ids=lambda page: page.name)
def test_slow_commands_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow(page, {"run", "slow"})


def test_quoted_messages_occur_in_the_code():
    """Each part of a quoted message, split at its ellipses, must occur in a string of the sources."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for room in ROOMS[:5] for file in (ROOT / room).rglob("*.py"))
    texts = {
        n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    quoted = [(block, line) for block in BLOCKS if block.mark == "said" for line in block.text.splitlines()]
    assert quoted
    for block, line in quoted:
        for part in line.split("…"):
            assert any(part.strip() in text for text in texts), f"{block}: no message says {part!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    gone = [link for link, _ in _LINK.findall(text) if not (page.parent / link).exists()]
    for name in _PATH.findall(text):
        if re.search(r"[A-Z]{3}", Path(name).stem):
            continue  # such as CODE.json
        spellings = [name]
        if alternatives := re.fullmatch(r"(.*)\{(.*)\}(.*)", name):
            spellings = [alternatives[1] + middle + alternatives[3] for middle in alternatives[2].split(",")]
        gone += [spelling for spelling in spellings if not list(ROOT.glob(spelling.rstrip("/")))]
    assert not gone, gone


def test_every_module_named_with_python_m_can_be_run():
    """In pages, docstrings and messages: a module, or a package with a __main__."""
    texts = [*PAGES, *(file for room in ROOMS[:6] for file in (ROOT / room).rglob("*.py"))]
    named = {m for file in texts for m in re.findall(r"python3? -m ([a-z_]+(?:\.[a-z_]+)*)", file.read_text("utf-8"))}
    ours = sorted(name for name in named if name.split(".")[0] in ROOMS)
    assert {"datagen", "datagen.kits", "engine.report", "evaluation"} <= set(ours)
    for name in ours:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"python -m {name} cannot run"
