"""launch/bench/bits.py: bits of each document as the model gives them alone, and intervals over documents by hand."""

import json
import math

import numpy as np
import pytest
import torch

from engine.base.errors import UserError
from engine.models import load_model
from engine.models.quantised import QuantisedLinear, linears_below
from engine.text.tokenizer import encode_prompt, load_tokenizer
from launch.bench import bits
from tests.engine.training.trainers import logits_of
from tests.launch import small

TEXTS = ["good morning", "नेपाली शुभ प्रभात", "how are you today, " * 9]


def test_bits_per_byte_of_each_document(tmp_path, capsys):
    """Of documents alone, from all of their logits: after EOS, in parts of 24 tokens that share one."""
    models = [str(small.make_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    small.write_rows(tmp_path / "ne.jsonl", [{"text": text} for text in TEXTS])
    bits.run(["--model", *models, "--text", str(tmp_path / "ne.jsonl"), "--max-length", "24"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    sizes, by_model = [len(text.encode()) for text in TEXTS], []
    for path in models:
        model, tokenizer, found = load_model(path, torch.float32), load_tokenizer(path), []
        for text in TEXTS:
            ids, total = [tokenizer.eos_token_id, *encode_prompt(tokenizer, text)], 0.0
            for part in (ids[i : i + 24] for i in range(0, len(ids) - 1, 23)):
                with torch.no_grad():
                    logprob_TV = logits_of(model, part).double().log_softmax(-1)
                total -= sum(logprob_TV[t, token].item() for t, token in enumerate(part[1:]))
            found.append(total / math.log(2))
        by_model.append(found)
    assert [(row["text"], row["model"]) for row in rows] == [("ne", path) for path in models]
    for row, found in zip(rows, by_model):
        assert row["bits_per_byte"][0] == pytest.approx(sum(found) / sum(sizes), rel=1e-5)
        difference = (sum(found) - sum(by_model[0])) / sum(sizes)
        assert row["difference"][0] == pytest.approx(difference, abs=1e-5)
    assert rows[0]["difference"] == [0, 0, 0]
    each = sorted((a - b) / size for a, b, size in zip(by_model[1], by_model[0], sizes))
    assert each[0] - 1e-5 <= rows[1]["difference"][1] <= rows[1]["difference"][2] <= each[-1] + 1e-5


def test_interval_by_hand():
    """Two documents: a resample is one of them twice, or both. Bytes count, documents do not weigh alike."""
    assert bits.interval(np.array([10.0, 20.0]), np.array([10.0, 10.0])) == (1.5, 1.0, 2.0)
    assert bits.interval(np.array([10.0, 0.0]), np.array([10.0, 30.0])) == (0.25, 0.0, 1.0)


def test_quantised_layers_have_rows_of_their_own(tmp_path, capsys):
    """Their bits are those of the model whose weights are the stored values."""
    path = str(small.make_model(tmp_path / "m", seed=0))
    small.write_rows(tmp_path / "ne.jsonl", [{"text": text} for text in TEXTS])
    bits.run(["--model", path, "--text", str(tmp_path / "ne.jsonl"), "--trunk-dtype", "model", "int8", "int4"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["model"] for row in rows] == [path, f"{path} int8", f"{path} int4"]
    model, tokenizer = load_model(path, torch.float32), load_tokenizer(path)
    text = bits.HeldOutText.read("ne", str(tmp_path / "ne.jsonl"), tokenizer, 512, 10_000)
    for row, dtype in zip(rows[1:], ("int8", "int4")):
        values = load_model(path, torch.float32)
        for name in linears_below(model, model.num_layers):
            weight = values.get_submodule(name).weight
            weight.data = QuantisedLinear(weight.data, None, dtype).weight
        expected, _, _ = bits.interval(bits.bits_of(values, text), bits.bytes_of(text))
        assert row["bits_per_byte"][0] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UserError, match="--trunk-dtype has 'int2': give some of model, int8, int4"):
        bits.run(["--model", path, "--text", str(tmp_path / "ne.jsonl"), "--trunk-dtype", "int2"])
