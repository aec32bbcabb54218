"""The house rules that a file can break without any other test noticing: imports, ranks, environment, docstrings."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from tests.files_table import ORDER, PAGE, page

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "engine", "datagen", "evaluation", "launch")
# What each room may import of the others.
MAY_IMPORT = {
    "kernels": {"kernels"},
    "engine": {"kernels", "engine"},
    "evaluation": {"kernels", "engine", "evaluation"},
    "launch": set(ROOMS),
    "datagen": {"datagen", "engine.base"},
}
# The boxes of the engine that may know that there are several ranks.
KNOW_RANKS = ("engine/distributed/", "engine/cli/", "engine/run/", "engine/training/")
RANK_MODULES = {"torch.distributed", "deepspeed", "engine.distributed"}
RANK_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE"}

SOURCES = sorted(path for folder in (*ROOMS, "tests") for path in (ROOT / folder).rglob("*.py")) + [ROOT / "setup.py"]
TEXT_SUFFIXES = {".py", ".md", ".json", ".txt", ".toml", ".yaml", ".yml", ".sh"}


def is_ours(path: Path) -> bool:
    """Not in a folder that git ignores: a virtual environment, a cache, a build, a run."""
    folders = path.relative_to(ROOT).parts[:-1]
    ignored = {"runs", "build", "dist"}
    return not any(f in ignored or f.endswith(".egg-info") or (f.startswith(".") and f != ".ci") for f in folders)


TEXTS = [
    path
    for path in ROOT.rglob("*")
    if is_ours(path) and path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name in {"Makefile", "run"})
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.Module) -> set[str]:
    """Every module a file imports, at its top or inside a function; `from a import b` gives a and a.b."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name, not relative"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def in_room(room: str) -> list[Path]:
    return [path for path in SOURCES if name_of(path).startswith(f"{room}/")]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    wrong = []
    for path in in_room(room):
        for module in imports(parse(path)) - {"engine"}:
            if module.split(".")[0] in ROOMS and not is_within(module, MAY_IMPORT[room]):
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong, wrong


def box_of(path: Path) -> str:
    """The folder or file at the root of its room that a file is in."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    order = ORDER[room].split()
    paths = [path for path in in_room(room) if box_of(path) != "__init__"]
    assert {box_of(path) for path in paths} == set(order), "ORDER names every box of the room, and no other"
    wrong = []
    for path in paths:
        for module in imports(parse(path)):
            parts = module.split(".")
            inside = parts[0] == room and len(parts) > 1 and parts[1] in order
            if inside and order.index(parts[1]) > order.index(box_of(path)):
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong, wrong


def test_datagen_names_no_torch():
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in in_room("datagen")
        for module in imports(parse(path))
        if module.split(".")[0] in {"torch", "transformers", "tokenizers", "deepspeed"}
    ]
    assert not wrong, wrong


def test_importing_all_of_datagen_loads_no_torch():
    modules = [name_of(path)[:-3].replace("/", ".") for path in in_room("datagen") if path.name != "__main__.py"]
    code = (
        f"import importlib, sys\nfor module in {modules!r}: importlib.import_module(module)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_run_level_knows_ranks():
    wrong = []
    for room in ("kernels", "engine", "evaluation"):
        for path in in_room(room):
            tree = parse(path)
            told = {m for m in imports(tree) if is_within(m, RANK_MODULES)}
            told |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in RANK_VARIABLES}
            if told and not name_of(path).startswith(KNOW_RANKS):
                wrong.append(f"{name_of(path)} knows {', '.join(sorted(told))}")
    assert not wrong, wrong


def test_models_and_mathematics_read_no_environment():
    wrong = []
    for path in [*in_room("kernels"), *in_room("engine/models")]:
        tree = parse(path)
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if {"environ", "getenv"} & names or {"os.environ", "os.getenv"} & imports(tree):
            wrong.append(name_of(path))
    assert not wrong, wrong


def test_every_file_says_in_one_sentence_what_it_is():
    wrong = []
    for path in SOURCES:
        first = (ast.get_docstring(parse(path)) or "").split("\n")[0]
        if path.stat().st_size and not (first.endswith((".", "?")) and len(first) > 15):
            wrong.append(name_of(path))
    assert not wrong, wrong


def test_every_folder_of_a_room_is_a_package():
    folders = {path.parent for room in ROOMS for path in in_room(room)}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_file_holds_a_path_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w")
    wrong = [name_of(path) for path in TEXTS if pattern.search(path.read_text(encoding="utf-8"))]
    assert not wrong, wrong


def test_transformers_leaves_our_kernels_alone():
    assert kernels.__version__.startswith("0.1.")
    assert re.search(r'^    version="0\.1\.\d+",$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    code = (
        "import kernels, transformers\n"
        "from transformers import AutoConfig, BloomForCausalLM\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "print(is_kernels_available(), kernels.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", kernels.__version__]


def test_the_installed_version_is_the_one_here():
    try:
        installed = importlib.metadata.version("okapi-rlhf")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed in this environment: `make test` installs it")
    assert installed == kernels.__version__


def test_the_page_of_files_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.files_table"
