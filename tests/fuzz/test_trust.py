"""Check the claim of docs/trust.md that no file can run code: the sources call no unsafe loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for room in ("kernels", "engine", "datagen", "evaluation", "launch") for path in (ROOT / room).rglob("*.py")
]
# Calls that can run code from a data file. The .py files that a user passes as code are imported elsewhere.
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load"),
    *("joblib.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "os.system"),
}


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN:
            yield name
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name.endswith("np.load") and given.get("allow_pickle", "False") != "False":
            yield "np.load with pickles"
        if given.get("trust_remote_code", "False") != "False":
            yield "trust_remote_code"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_calls_no_unsafe_loader(path):
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
    ],
)
def test_unsafe_call_is_found(source):
    assert len(list(faults(source))) == 1
