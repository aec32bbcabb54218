"""A fresh clone works without installing the package, and its programs import from that clone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"kernels", "engine", "datagen", "evaluation", "launch"}
LAUNCH = ROOT / "launch"
PROGRAMS = sorted(
    path.relative_to(LAUNCH).as_posix() for path in LAUNCH.rglob("*.py") if "\n    main(" in path.read_text("utf-8")
)
# Run `python FILE` in an interpreter that does not know where the package is installed.
START = """
import runpy, sys
from pathlib import Path
file, *argv = sys.argv[1:]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [str(Path(file).parent), *(p for p in sys.path if not Path(p, "engine").is_dir())]
sys.argv = [file, *argv]
try:
    runpy.run_path(file, run_name="__main__")
except SystemExit as stopped:
    print(stopped.code or 0, sys.modules["engine"].__file__)
"""


def test_programs_are_found():
    assert {"sft.py", "ppo.py", "evaluate.py", "serve.py", "bench/ppo_trl.py", "init.py", "plan.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_puts_its_clone_on_the_path_first(program):
    above = len(Path(program).parts)
    for node in ast.parse((LAUNCH / program).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            assert ast.unparse(node.body[0]) == f"sys.path.insert(0, str(Path(__file__).resolve().parents[{above}]))"
            return
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not ROOMS & {name.split(".")[0] for name in names if name}, f"line {node.lineno}"


def test_program_starts_from_any_folder_without_the_package(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", START, str(ROOT / "launch" / "init.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"0 {ROOT / 'engine' / '__init__.py'}"
