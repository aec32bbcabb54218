"""Sequence lengths above the model's limit: defaults are lowered with a note, flags are refused."""

from __future__ import annotations

import builtins
import io
import json
import sys

import pytest

from engine.base.errors import UserError
from launch import chat, evaluate, serve
from launch.lengths import fit_lengths
from tests.evaluation import made_up
from tests.launch import small
from tests.launch.conftest import edit_json
from tests.launch.jobs import ALL, ON_RANKINGS, TRAINERS, assert_says, run

NONE_GIVEN = {"max-length": None, "max-new-tokens": None}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """Return a model in Mistral's layout: 256 positions, and a sliding window, which is no limit."""
    path = small.make_model(tmp_path_factory.mktemp("windowed") / "m", "llama")
    edit_json(path / "config.json", model_type="mistral", max_position_embeddings=256, sliding_window=64)
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Return a LLaMA with 128 positions."""
    path = small.make_model(tmp_path_factory.mktemp("short") / "m", "llama")
    edit_json(path / "config.json", max_position_embeddings=128)
    return path


@pytest.mark.parametrize("job", ALL)
def test_default_lengths_are_lowered_to_the_models_limit(here, windowed, monkeypatch, capfd, job):
    own = {"ppo": {"reward": "lengths_reward:length"}, "sample": {"num-responses": "1", "temperature": "0"}}.get(
        job, {}
    )
    (here / "lengths_reward.py").write_text("def length(prompt, response): return float(len(response))\n")
    own |= {name: None for name in NONE_GIVEN if job in ("ppo", "sample") or name == "max-length"}
    run(monkeypatch, job, {"model": str(windowed), **own})
    length = 768 if job in ON_RANKINGS else 512
    said = f"note: {windowed} serves 256 tokens (max_position_embeddings in its config.json): "
    said += f"--max-length is 256, not {length}"
    said += ", --max-new-tokens is 128, not 256" if job in ("ppo", "sample") else ""
    assert said in capfd.readouterr().out.split("\n")
    if job in TRAINERS:
        config = json.loads((here / "out" / "config.json").read_text())
        new = {"max_new_tokens": 128} if job == "ppo" else {}
        assert config["lowered"] == {"max_length": 256, **new}
        assert config["settings"]["max_length"] == length
        assert "| max_length | `256` |" in (here / "out" / "model" / "README.md").read_text()
        run(monkeypatch, job, {"model": str(windowed), **own})
        assert "is complete with these settings" in capfd.readouterr().out


@pytest.mark.parametrize("job", ALL)
def test_given_max_length_is_not_lowered(refused, short, job):
    line = refused(job, {"model": str(short), "max-length": "129"})
    assert_says(line, f"--max-length is 129, {short} serves 128 tokens (max_position_embeddings in its config.json)")


def test_given_max_new_tokens_is_not_lowered(refused, short):
    for job in ("ppo", "sample"):
        line = refused(job, {"model": str(short), "max-length": None, "max-new-tokens": "128"})
        assert_says(line, "--max-new-tokens is 128, --max-length is 128: no prompt fits")


def test_fitting_lengths_stay(short):
    assert fit_lengths([], short, (), pytest.fail) == []


def test_server_defaults_to_the_limit(windowed, short):
    loaded = serve.load(serve.ModelSettings(str(windowed), slots=1))
    assert loaded.engine.max_length == 256
    assert loaded.room == "256 tokens a sequence"
    assert serve.load(serve.ModelSettings(str(short), slots=1)).room == "128 tokens a sequence"
    with pytest.raises(UserError, match=r"--max-length is 257, .* serves 256 tokens \(max_position_embeddings in its"):
        serve.load(serve.ModelSettings(str(windowed), max_length=257))


def test_chat_defaults_to_the_limit_with_room_for_a_question(windowed, monkeypatch, capsys):
    def no_input(_):
        raise EOFError

    monkeypatch.setattr(builtins, "input", no_input)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    chat.job(["--model", str(windowed)])
    assert "256 tokens a sequence, answers of up to 128" in capsys.readouterr().out
    chat.job(["--model", str(windowed), "--max-new-tokens", "250"])
    assert "answers of up to 250" in capsys.readouterr().out


def test_evaluation_defaults_to_the_limit(windowed, tmp_path, capsys):
    made_up.everything(tmp_path / "data")
    flags = ["--lang=en", f"--model={windowed}", f"--data-dir={tmp_path / 'data'}", "--tasks=arc", "--limit=2"]
    evaluate.job([*flags, "--shots=0", f"--output={tmp_path / 'out'}"])
    assert "256 tokens a sequence" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tasks"]["arc.en"]["max_length"] == 256
    with pytest.raises(UserError, match=r"--max-length is 300, .* serves 256 tokens"):
        evaluate.job([*flags, "--max-length=300", f"--output={tmp_path / 'other'}"])
