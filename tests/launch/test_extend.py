"""launch/extend.py: the model it writes, what it prints, and errors."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datagen.kits import load_kit
from engine.base.errors import UserError
from engine.init_model import init_model
from engine.models import load_model
from launch.extend import run
from tests.engine.models.test_grow import logits


@pytest.fixture(scope="module", params=["bloom", "llama"])
def english(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    init_model(load_kit("en").texts, 360, path, family=request.param, layers=1, hidden=16, heads=2)
    (path / "generation_config.json").write_text('{"eos_token_id": 2}')
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in load_kit("ne").texts))
    return path


@torch.no_grad()
def test_transformers_loads_the_extended_model_with_equal_logits(english, text, tmp_path, capsys):
    run(["--model", str(english), "--text", str(text), "--add", "60", "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "60 new tokens" in out and "fewer tokens" in out and "warning" not in out
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(english)
    extended = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(extended) == len(tokenizer) + 60 and (tmp_path / "out" / "generation_config.json").is_file()
    ids = extended.encode(load_kit("ne").texts[0], add_special_tokens=False)
    assert max(ids) >= len(tokenizer)
    ours = load_model(tmp_path / "out")
    assert torch.allclose(logits(ours, ids), theirs(torch.tensor([ids])).logits[0], atol=1e-5)


def test_a_text_that_gains_little_is_warned_about(english, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(load_kit("en").texts * 2))
    run(["--model", str(english), "--text", str(path), "--add", "1", "--lang", "en", "--output", str(tmp_path / "out")])
    assert "warning: less than 5% saved" in capsys.readouterr().out


def test_fewer_new_pieces_than_asked_for_is_said(english, text, tmp_path, capsys):
    run(["--model", str(english), "--text", str(text), "--add", "50000", "--output", str(tmp_path / "out")])
    assert "--add is 50,000, the text has" in capsys.readouterr().out


def test_mistakes(english, text, tmp_path):
    def fails(message, *argv):
        with pytest.raises(UserError, match=message):
            run(["--model", str(english), "--output", str(tmp_path / "out"), *argv])

    fails("--add is 0", "--text", str(text), "--add", "0")
    short = tmp_path / "short.txt"
    short.write_text("नमस्ते")
    fails("fewer than 20 documents: give more text", "--text", str(short))
    same = tmp_path / "same.txt"
    same.write_text("\n\n".join(["1 2 3"] * 40))
    fails("has no frequent pieces that the tokenizer lacks", "--text", str(same))
    fails("cannot read .*absent.txt", "--text", str(tmp_path / "absent.txt"))
    assert not (tmp_path / "out").exists()
