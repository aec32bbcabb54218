"""Seed tasks: the 30 built in, user files, and draws that depend only on seed and request."""

from __future__ import annotations

import json

import pytest

from datagen.self_instruct.seed_tasks import SEEDS_FILE, draw_seeds, read_seeds
from datagen.self_instruct.task_filters import fault_of
from datagen.text.near_duplicates import near_duplicates
from datagen.text.words import rouge_words
from engine.base.errors import UserError


def test_built_in_seeds_are_thirty_valid_tasks():
    seeds = read_seeds(SEEDS_FILE)
    assert len(seeds) == 30
    assert [fault for seed in seeds if (fault := fault_of(seed.task))] == []
    names = [json.loads(line)["name"] for line in SEEDS_FILE.read_text(encoding="utf-8").splitlines()]
    assert len(set(names)) == 30
    for kind in ("relation_extraction", "event_extraction", "event_summarization", "logic"):
        assert sum(name.startswith(kind) for name in names) >= 3


def test_built_in_seeds_are_no_near_duplicates(real_data):
    others = [seed.task.instruction for seed in read_seeds(real_data / "seed_tasks.jsonl")]
    assert len(others) == 175
    texts = [*others, *(seed.task.instruction for seed in read_seeds(SEEDS_FILE))]
    matches = near_duplicates([rouge_words(text) for text in texts], first_query=len(others))
    assert sum(len(block.query) for block in matches) == 0


def test_draws_depend_only_on_seed_and_request():
    seeds = read_seeds(SEEDS_FILE)
    draws = [draw_seeds(seeds, 3, 0, request) for request in range(200)]
    assert [draw_seeds(seeds, 3, 0, request) for request in range(200)] == draws
    assert draw_seeds(seeds, 3, 1, 0) != draws[0]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {seed for draw in draws for seed in draw} == set(seeds)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a", "instances": []}', "field 'instances' is [{}]: it must be a list"),
        ('{"instruction": "a", "instances": [{"input": ""}]}', "field 'output' is None: a seed needs a string there"),
        ('{"instruction": 3, "input": "", "output": "b"}', "field 'instruction' is 3"),
        ('{"instruction": " ", "input": "", "output": "b"}', "field 'instruction' is ' '"),
        ('{"instruction": "a", "input": [], "output": "b"}', "field 'input' is []"),
        ('{"instruction": "a \\ud83d", "input": "", "output": "b"}', "field 'instruction' holds half a surrogate pair"),
    ],
)
def test_bad_seed_error_names_file_line_and_field(tmp_path, line, message):
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "a", "input": "i", "output": "b"}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_seeds(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message.replace("[{}]", "[]") in str(error.value)
