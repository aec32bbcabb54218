"""EOS ids: read from the files of a model, used by everything that generates, and exported."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from engine.base.errors import UserError
from engine.generation.generate import generate
from engine.text.eos import eos_ids_of
from engine.text.tokenizer import decode, load_tokenizer
from engine.training.metrics import Metrics
from launch import ppo, serve
from tests.engine.training.trainers import EOS, make_trainer, one_rank
from tests.launch import small
from tests.launch.conftest import edit_json


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.make_model(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture
def model(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def write(model, generation, config):
    if generation is not None:
        (model / "generation_config.json").write_text(json.dumps(generation))
    fields = json.loads((model / "config.json").read_text())
    fields.pop("eos_token_id")
    (model / "config.json").write_text(json.dumps(fields | config))


@pytest.mark.parametrize(("generation", "config", "expected"), [
    (None, {}, (2,)),  # the default of the config class is not used
    (None, {"eos_token_id": None}, (2,)),
    (None, {"eos_token_id": 7}, (2, 7)),
    (None, {"eos_token_id": [7, 2, 9]}, (2, 7, 9)),
    ({"eos_token_id": [7, 2]}, {"eos_token_id": 9}, (2, 7)),
    ({"eos_token_id": 2}, {"eos_token_id": 9}, (2,)),
    ({"temperature": 0.5}, {"eos_token_id": 9}, (2, 9)),
    ({"eos_token_id": None}, {"eos_token_id": [9]}, (2, 9)),
    ({"eos_token_id": []}, {"eos_token_id": [9]}, (2, 9)),
])  # fmt: skip
def test_eos_ids_of_tokenizer_then_generation_config_or_config(model, tokenizer, generation, config, expected):
    write(model, generation, config)
    assert eos_ids_of(model, tokenizer, small.VOCABULARY) == expected


@pytest.mark.parametrize("wrong", ["x", 320, [2, -1], True, [2.0]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_eos_id_outside_the_vocabulary_is_refused(model, tokenizer, file, wrong):
    write(model, {"eos_token_id": wrong} if file[0] == "g" else None, {"eos_token_id": 2 if file[0] == "g" else wrong})
    with pytest.raises(UserError, match=rf"/{file} names the eos_token_id .* 0 to 319: correct it") as caught:
        eos_ids_of(model, tokenizer, small.VOCABULARY)
    assert "\n" not in str(caught.value)


def test_ppo_ends_at_every_eos_and_leaves_it_out_of_the_text(tmp_path, monkeypatch):
    with one_rank() as world:
        trainer = make_trainer("ppo", world, tmp_path / "one", max_new_tokens=20)
        plain = trainer._generate(0, range(5))
        second, _ = Counter(t for r in plain for t in r.tokens[1:-1]).most_common(1)[0]
        trainer = make_trainer("ppo", world, tmp_path / "two", max_new_tokens=20, eos_ids=(EOS, second))
        responses = trainer._generate(0, range(5))
        monkeypatch.setattr(trainer, "_generate", lambda *_: responses)
        seen = []
        scorer = trainer.scorer

        def listening(batch, trunk_TD, prompts, texts, *more):
            seen.extend(texts)
            return scorer(batch, trunk_TD, prompts, texts, *more)

        listening.trunk = None
        trainer.scorer = listening
        metrics = Metrics()
        x = trainer.collect(0, metrics)
    cut = [(long, short) for long, short in zip(plain, responses) if second in long.tokens]
    assert cut
    for long, short in cut:
        assert short.tokens == long.tokens[: long.tokens.index(second) + 1]
        assert short.ended
    assert x.action_T.sum() == sum(len(r.tokens) for r in responses)  # EOS included
    assert seen == [decode(trainer.tokenizer, r.tokens[:-1] if r.ended else r.tokens) for r in responses]
    assert metrics.read(world)["rollout/ended_with_eos"] == sum(r.ended for r in responses) / 5


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_run_reads_uses_and_exports_the_eos_ids(model, file, tmp_path, monkeypatch):
    """The exported list is read by serve.py as PPO and held-out evaluation read the base model's."""
    edit_json(model / "config.json", eos_token_id=[2, 9] if file == "config.json" else 2)
    if file == "generation_config.json":
        (model / file).write_text(json.dumps({"eos_token_id": [2, 9]}))
    small.write_rows(tmp_path / "prompts.jsonl", small.INSTRUCTIONS)
    (tmp_path / "rewards_of_eos.py").write_text("def length(prompt, response): return float(len(response))\n")
    monkeypatch.syspath_prepend(tmp_path)
    asked = []
    monkeypatch.setattr("engine.training.ppo.generate", lambda *a, **k: asked.append(a[4]) or generate(*a, **k))
    monkeypatch.setattr("engine.training.heldout.generate", lambda *a, **k: asked.append(a[4]) or generate(*a, **k))
    with small.alone():
        ppo.job([
            "--lang", "ne", "--model", str(model), "--data", str(tmp_path / "prompts.jsonl"), "--eval-data",
            str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out"), "--max-steps", "1", "--reward",
            "rewards_of_eos:length", "--top-layers", "1", "--max-new-tokens", "4", "--max-length", "64", "--template",
            "plain",
        ])  # fmt: skip
    assert asked == [(2, 9)] * 3  # held-out prompts, rollouts, held-out prompts again
    exported = tmp_path / "out" / "model"
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == [2, 9]
    assert tuple(serve.load(serve.ModelSettings(str(exported), slots=1, max_length=64)).engine.eos_ids) == (2, 9)
