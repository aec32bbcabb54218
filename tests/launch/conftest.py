"""Fixtures: good and damaged input files, a working directory with them, and a check of error lines."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from engine.models import load_model, save_model
from engine.text.tokenizer import load_tokenizer
from launch.serve import ModelSettings, load
from tests.launch import small
from tests.launch.jobs import everything, run


@pytest.fixture(scope="module", autouse=True)
def alone():
    """Run each module as the only rank."""
    with small.alone():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a small model to serve."""
    return small.make_model(tmp_path_factory.mktemp("served") / "m")


@pytest.fixture(scope="module")
def loaded(folder):
    """Return the small model, ready to serve."""
    return load(ModelSettings(str(folder), template="plain", max_length=128, slots=4))


@pytest.fixture(scope="session")
def good_and_bad(tmp_path_factory):
    """Return a folder with valid inputs of each job, and models with one fault each."""
    folder = tmp_path_factory.mktemp("files")
    model = small.make_model(folder / "m")
    small.make_reward_model(folder / "rm", model)
    small.make_reward_model(folder / "rm_nan", model, score=float("nan"))
    small.make_reward_model(folder / "rm_other", small.make_model(folder / "other", vocabulary=330))
    small.write_rows(folder / "prompts.jsonl", small.INSTRUCTIONS)
    small.write_rows(folder / "rankings.jsonl", small.RANKINGS)

    for name in ("no_weights", "cut", "bad_json", "gpt2", "no_eos", "large_vocabulary", "no_tokenizer", "mismatch"):
        shutil.copytree(model, folder / name)
    (folder / "empty").mkdir()
    (folder / "no_weights" / "model.safetensors").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "bad_json" / "config.json").write_text('{"model_type": ')
    (folder / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    edit_json(folder / "no_eos" / "tokenizer_config.json", eos_token=None)
    shutil.copy(folder / "other" / "tokenizer.json", folder / "large_vocabulary" / "tokenizer.json")
    (folder / "no_tokenizer" / "tokenizer.json").unlink()
    edit_json(folder / "mismatch" / "config.json", hidden_size=32)
    short = load_model(small.make_model(folder / "llama", "llama"))
    save_model(short, folder / "short", load_tokenizer(folder / "llama"))
    edit_json(folder / "short" / "config.json", max_position_embeddings=32)
    (folder / "run").mkdir()
    shutil.copytree(model, folder / "run" / "model")
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def here(good_and_bad, tmp_path, monkeypatch):
    """Change to a temporary directory with links to the files of good_and_bad."""
    for path in good_and_bad.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def refused(here, monkeypatch, capfd):
    """Return refuse(job, changes): run a job that must fail and change no file; return its line without "error: "."""

    def refuse(job, changes, *more):
        before = everything(here)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, job, changes, *more)
        said = capfd.readouterr()
        assert stopped.value.code == 2
        assert said.err.startswith("error: ")
        assert said.err.endswith("\n")
        assert said.err.count("\n") == 1, said.err
        assert said.out == ""
        assert everything(here) == before
        return said.err.removeprefix("error: ").strip()

    return refuse
