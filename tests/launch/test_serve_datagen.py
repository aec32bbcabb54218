"""datagen commands with our server: one model knows the answers, one is random."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from datagen.__main__ import main
from datagen.simulate.answers import simulated_answer
from engine.base.records import read_rankings, write_jsonl
from engine.generation.sampling import Sampled
from engine.serving.dialog import DialogEncoder
from engine.serving.live import LiveEngine
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import encode_response
from launch.serve import ModelSettings, load
from tests.datagen.api.api_helpers import read_lines
from tests.datagen.test_rank import sampled
from tests.datagen.test_translate_runs import records
from tests.launch.serving import NAME, in_a_thread

ROOM = 1 << 14


class Knowing(LiveEngine):
    """A LiveEngine that chooses the tokens of the API simulator's answer. Prompts are the messages as JSON."""

    def _choose(self, logits_SV):
        tokens = []
        for admitted, position, first in zip(self.rows.samples, self.rows.host_position_S, self.rows.first_S):
            prompt = admitted.request.prompt
            if prompt not in self.answers:
                messages = json.loads(self.tokenizer.decode(prompt))
                self.answers[prompt] = encode_response(self.tokenizer, simulated_answer(messages))
            tokens.append(self.answers[prompt][position + 1 - first])
        zeros = torch.zeros(len(tokens))
        return Sampled(torch.tensor(tokens), zeros, zeros)


@pytest.fixture
def knowing(folder):
    """Return a model that answers like the simulator."""
    loaded = load(ModelSettings(str(folder), max_length=ROOM, slots=8, template="plain"))
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = "{{ messages | tojson }}"
    loaded.engine.__class__ = Knowing
    loaded.engine.tokenizer, loaded.engine.answers = tokenizer, {}
    return replace(loaded, tokenizer=tokenizer, dialogs=DialogEncoder(tokenizer, ChatTemplate(tokenizer)))


def flags(url, output, max_tokens):
    return ["--output", str(output), "--base-url", url, "--model", NAME, "--max-tokens", str(max_tokens)]


def test_rank_and_translate_with_a_knowing_model(tmp_path, knowing, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    responses, english = tmp_path / "responses.jsonl", tmp_path / "en.jsonl"
    rows = sampled("ne", 4)
    write_jsonl(responses, rows)
    write_jsonl(english, records(4))
    with in_a_thread(knowing, max_open=64) as url:
        argv = ["rank", "--lang", "ne", "--data", str(responses), *flags(url, tmp_path / "ranking.jsonl", 4000)]
        assert main(argv) == 0
        argv = ["translate", "--lang", "ne", "--data", str(english), *flags(url, tmp_path / "ne.jsonl", 2000)]
        assert main(argv) == 0
    rankings = {record.id: record for record in read_rankings(tmp_path / "ranking.jsonl")}
    assert len(rankings) == 4
    for row in rows:
        assert rankings[row["id"]].ranks[row["kit_ranks"].index(1)] == 1
    translated = read_lines(tmp_path / "ne.jsonl")
    assert [row["id"] for row in translated] == ["r0", "r1", "r2", "r3"]
    assert read_lines(tmp_path / "ne.jsonl.quarantine.jsonl") == []


def test_answers_of_a_random_model_are_quarantined(tmp_path, folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_jsonl(tmp_path / "responses.jsonl", sampled("ne", 3))
    write_jsonl(tmp_path / "en.jsonl", records(3))
    loaded = load(ModelSettings(str(folder), max_length=ROOM, slots=8, template="plain"))
    with in_a_thread(loaded, max_open=64) as url:
        for verb, data in (("rank", "responses"), ("translate", "en")):
            output = tmp_path / f"{verb}.jsonl"
            argv = [verb, "--lang", "ne", "--data", str(tmp_path / f"{data}.jsonl"), *flags(url, output, 24)]
            assert main(argv) == 2
            assert read_lines(output) == []
            reasons = [row["reason"] for row in read_lines(tmp_path / f"{verb}.jsonl.quarantine.jsonl")]
            assert len(reasons) == 3
            assert not any("API" in reason or "gave up" in reason for reason in reasons), reasons
