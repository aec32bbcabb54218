"""launch/merge.py: means by hand, dtypes kept, memory of one tensor, a card, and a line for each mistake."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.cli.parse import main
from engine.models import load_model, save_model
from engine.models import merge as merging
from engine.models.hf import write_all_but_weights
from engine.text.tokenizer import load_tokenizer
from launch import merge
from tests.launch import small
from tests.launch.jobs import assert_says


def with_weights(path, base, value, dtype=torch.float32):
    """Write the model of `base` with one value in all weights, or with `value(name, tensor)`."""
    model, tokenizer = load_model(base, dtype), load_tokenizer(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(value(name, weight) if callable(value) else torch.full_like(weight, value))
    save_model(model, path, tokenizer)
    return path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["launch/merge.py", *map(str, words)])
    main(merge.run)


@pytest.fixture
def here(good_and_bad, tmp_path, monkeypatch):
    for path in good_and_bad.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["m", "llama"])
def test_mean_by_hand(here, monkeypatch, capfd, family):
    """0.75 * 2 + 0.25 * -6 = 0; and 0.5 and 1.5 with equal weights are 1."""
    with_weights(here / "a", here / family, 2.0)
    with_weights(here / "b", here / family, -6.0)
    run(monkeypatch, "--model", "a", "--model", "b", "--weights", "0.75,0.25", "--output", "out")
    said = capfd.readouterr().out
    assert_says(said, "out: 0.75 a + 0.25 b; ", "weights in float32")
    assert all((weight == 0.0).all() for weight in load_file(here / "out" / "model.safetensors").values())
    with_weights(here / "c", here / family, 0.5)
    with_weights(here / "d", here / family, 1.5)
    run(monkeypatch, "--model", "c", "d", "--output", "equal")
    assert all((weight == 1.0).all() for weight in load_file(here / "equal" / "model.safetensors").values())
    run(monkeypatch, "--model", "c", "d", "--weights", "6,2", "--output", "parts")  # 0.75 * 0.5 + 0.25 * 1.5
    assert all((weight == 0.75).all() for weight in load_file(here / "parts" / "model.safetensors").values())


def test_each_tensor_is_merged_with_its_own(here, monkeypatch):
    other = small.make_model(here / "seed1", seed=1)
    run(monkeypatch, "--model", "m", "--model", other, "--weights", "0.7,0.3", "--output", "out")
    first, second, mean = (load_model(here / name).state_dict() for name in ("m", "seed1", "out"))
    assert mean.keys() == first.keys()
    for name, weight in mean.items():
        assert torch.allclose(weight, 0.7 * first[name] + 0.3 * second[name], atol=1e-7, rtol=0), name
    assert not torch.equal(first["embedding.weight"], second["embedding.weight"])
    assert load_tokenizer(here / "out").get_vocab() == load_tokenizer(here / "m").get_vocab()


def test_bfloat16_is_summed_in_float32_and_rounded_once(here, monkeypatch):
    """Each third of 1 would round alone in bfloat16, and their sum to 1.0078125 or less than 1."""
    for name, value in (("a", 1.0), ("b", 1.0078125), ("c", 1.0)):
        with_weights(here / name, here / "m", value, torch.bfloat16)
    run(monkeypatch, "--model", "a", "b", "c", "--weights", "1,1,1", "--output", "out")
    found = load_file(here / "out" / "model.safetensors")
    third = torch.tensor((1 + 1.0078125 + 1) / 3).bfloat16()
    assert third == 1.0
    for weight in found.values():
        assert weight.dtype == torch.bfloat16 and (weight == third).all()
    assert json.loads((here / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_one_tensor_of_each_model_is_read_at_a_time(here, monkeypatch):
    """With shards of one tensor, no tensor is read before the one before it was written; each is read once."""
    other, events = small.make_model(here / "seed1", seed=1), []
    stored = merging.read_weights

    def logged(path):
        def watch(name, tensor):
            def read():
                events.append(name)
                return tensor.read()

            return tensor._replace(read=read)

        return {name: watch(name, tensor) for name, tensor in stored(path).items()}

    monkeypatch.setattr(merging, "read_weights", logged)
    monkeypatch.setattr(merge, "SHARD_BYTES", 1)
    monkeypatch.setattr("engine.models.weight_files.save_file", saving := Saving(events))
    run(monkeypatch, "--model", "m", other, "--output", "out")
    events = events[1:]  # the dtype of the embedding was looked up
    assert len(saving.files) == len(events) // 3 > 10
    for first, second, saved in zip(events[::3], events[1::3], events[2::3]):
        assert first == second and saved == "saved"


class Saving:
    def __init__(self, events):
        from engine.models import weight_files

        self.own, self.events, self.files = weight_files.save_file, events, []

    def __call__(self, tensors, path, metadata):
        self.events.append("saved")
        self.files.append(path)
        self.own(tensors, path, metadata=metadata)


def test_card_names_the_models(here, monkeypatch):
    with_weights(here / "a", here / "m", 2.0)
    run(monkeypatch, "--model", "m", "a", "--weights", "0.7,0.3", "--output", "out")
    card = (here / "out" / "README.md").read_text()
    assert_says(
        card, "# A merge of models", "model 1: `m, weight 0.7`", "model 2: `a, weight 0.3`", "summed in float32"
    )
    assert "language:" not in card and "## Scores" not in card
    assert "Continuing text, for research" in card
    run(monkeypatch, "--model", "m", "a", "--lang", "ne", "--output", "ne")
    assert_says((here / "ne" / "README.md").read_text(), 'language: ["ne"]', "# Nepali: a merge of models")
    assert (here / "out" / "generation_config.json").is_file()


def test_mistakes_are_a_line_and_write_nothing(here, monkeypatch, capfd):
    with_weights(here / "half", here / "m", 1.0, torch.bfloat16)
    shutil.copytree(here / "m", here / "words")
    settings = json.loads((here / "words" / "tokenizer_config.json").read_text())
    (here / "words" / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<unk>"}))
    small.make_model(here / "texts", vocabulary=small.VOCABULARY)
    spec = json.loads((here / "texts" / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (here / "texts" / "tokenizer.json").write_text(json.dumps(spec))
    before = sorted(here.iterdir())
    for words, said in (
        (("m",), ("--model names one model, m: give two or more",)),
        (("m", "m", "--weights", "1,1,1"), ("--weights has 3 numbers and there are 2 models",)),
        (("m", "m", "--weights", "1,x"), ("--weights is 1,x: give finite numbers above 0",)),
        (("m", "m", "--weights", "1.5,-0.5"), ("--weights is 1.5,-0.5: give finite numbers above 0",)),
        (("m", "llama"), ("llama has ", "only models with equal configs")),
        (("m", "other"), ("other has vocab_size 330 and m 320",)),
        (("m", "rm"), ("rm is a reward model",)),
        (("m", "absent"), ("absent is not a directory",)),
        (("m", "cut"), ("is cut short or no safetensors file",)),
        (("m", "half"), ("half has ", "in bfloat16 and m in float32: convert one")),
        (("m", "words"), ("words and m have different special tokens",)),
        (("m", "texts"), ("texts and m have different tokenizers",)),
        (("m", "m", "--output", "m"), ("--output m is one of the models",)),
        (("m", "m", "--output", "run"), ("run exists and is not a model directory",)),
    ):
        output = () if "--output" in words else ("--output", "out")
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "--model", *words, *output)
        captured = capfd.readouterr()
        assert stopped.value.code == 2 and captured.err.count("\n") == 1 and captured.out == "", words
        assert_says(captured.err, "error: ", *said)
        assert sorted(here.iterdir()) == before, words


def test_a_meta_model_has_what_the_export_needs(here):
    """All but the weights is written from shapes and dtypes alone."""
    model, _ = merging.open_merge([here / "m", here / "m"], [0.5, 0.5])
    (here / "files").mkdir()
    tensors = write_all_but_weights(model, here / "files", load_tokenizer(here / "m"), None, None, ())
    assert all(tensor.read().is_meta for tensor in tensors.values())
    assert Path("files", "config.json").is_file()
