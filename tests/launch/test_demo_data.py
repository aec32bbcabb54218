"""The offline chain: instruct, translate, sample and rank with the simulator, then train a reward model."""

from __future__ import annotations

import json

import pytest

from datagen.__main__ import main
from engine.base.records import read_instructions, read_rankings
from launch import reward, sample
from tests.datagen.serving import serving
from tests.launch import small


@pytest.mark.parametrize("lang", ["ne", "vi", "ar"])
def test_seeds_to_reward_model(tmp_path, monkeypatch, lang):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    small.make_model(tmp_path / "m")
    with serving() as simulator:
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.url)
        assert main(["instruct", "--target", "12", "--output", "en.jsonl"]) == 0
        assert main(["translate", "--lang", lang, "--data", "en.jsonl", "--output", "there.jsonl"]) == 0
        prompts = list(read_instructions("there.jsonl"))
        assert len(prompts) >= 10 and not (tmp_path / "there.jsonl.quarantine.jsonl").exists()
        with small.alone():
            sample.job([
                *("--lang", lang, "--model", "m", "--data", "there.jsonl", "--output", "responses.jsonl"),
                *("--num-responses", "3", "--max-new-tokens", "8", "--template", "plain", "--max-length", "2048"),
            ])  # fmt: skip
            assert main(["rank", "--lang", lang, "--data", "responses.jsonl", "--output", "ranking.jsonl"]) == 0
            rankings = list(read_rankings("ranking.jsonl"))
            assert len(rankings) >= 8 and {record.id for record in rankings} <= {record.id for record in prompts}
            reward.job([
                *("--lang", lang, "--model", "m", "--data", "ranking.jsonl", "--output", "rm", "--max-steps", "1"),
                *("--template", "plain", "--max-length", "2048", "--heldout", "0.2"),
            ])  # fmt: skip
    assert json.loads((tmp_path / "rm" / "result.json").read_text())
