"""launch/judge.py: measures by hand, both record formats, a real reward model, errors."""

from __future__ import annotations

import json
import math

import pytest
import torch

from engine.base.errors import UserError
from engine.models import save_model
from launch.judge import Pair, job, numbers_of, pairs_of
from tests.engine.training.trainers import tiny_model, tiny_tokenizer

COUNT_A = "tests.launch.test_judge:count_a"


def count_a(prompt: str, response: str) -> float:
    return float(response.count("a"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbers(path, data, reward=COUNT_A):
    job(["--reward", reward, "--data", data, "--output", str(path)])
    return json.loads(path.read_text())


def test_pairs_have_different_ranks_and_the_better_answer_first():
    row = {"ranks": [2, 1, 2], "responses": ["ab", "abc", "a"]}
    assert pairs_of(row, [0.5, 2.0, 3.0]) == [Pair(1.5, 1), Pair(-1.0, 2)]


def test_numbers_by_hand():
    """Prompt 1: right, tie. Prompt 2: wrong. Accuracy 1.5 of 3; deviations 0.5 and -0.5 with counts 2 and 1."""
    found = numbers_of([[Pair(1.0, 4), Pair(0.0, -2)], [], [Pair(-1.0, 3)]])
    assert found.pop("half") == pytest.approx(1.96 * math.sqrt((0.5**2 + 0.5**2) * 2) / 3)
    assert found == {
        "prompts": 2, "pairs": 3, "accuracy": 0.5, "ties": 1 / 3, "if_longer": 0.5, "if_shorter": 0.5,
        "longer": 2 / 3, "prefers_longer": 0.5,  # longer preferred, tie, shorter preferred
    }  # fmt: skip


def test_categories_and_languages_have_their_own_rows(tmp_path, capsys):
    pairs = [("aa", "a", "chat", "ne"), ("a", "aa", "chat", "hi"), ("aaa", "b", "safety", "ne")]
    rows = [
        {"prompt": f"p{i}", "chosen": chosen, "rejected": rejected, "category": category, "language": language}
        for i, (chosen, rejected, category, language) in enumerate(pairs)
    ]
    found = numbers(tmp_path / "out.json", write(tmp_path / "bench.jsonl", *rows))
    accuracies = {name: x["accuracy"] for name, x in found.items()}
    assert accuracies == {
        "category chat": 0.5, "category safety": 1.0, "language hi": 0.0, "language ne": 1.0,
        "all": pytest.approx(2 / 3),
    }  # fmt: skip
    assert "mean over categories: 75.0 %" in capsys.readouterr().out


def test_a_reward_model_scores_as_launch_score_does(tmp_path):
    """Rankings of K answers; the order is that of the scores that launch/score.py writes."""
    from launch import score

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    weight_D = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "reward", tokenizer, score_weight_D=weight_D)
    row = {"instruction": "w7 w8", "input": "", "responses": ["w9", "w12 w5", "w30"], "ranks": [1, 2, 3]}
    data = write(tmp_path / "rankings.jsonl", row)
    score.job(["--reward", str(tmp_path / "reward"), "--data", data, "--output", str(tmp_path / "scores.jsonl"),
               "--template", "plain"])  # fmt: skip
    scores = json.loads((tmp_path / "scores.jsonl").read_text())["scores"]
    job(["--reward", str(tmp_path / "reward"), "--data", data, "--output", str(tmp_path / "o.json"),
         "--template", "plain"])  # fmt: skip
    found = json.loads((tmp_path / "o.json").read_text())["all"]
    assert found["pairs"] == 3 and found["ties"] == 0
    assert found["accuracy"] == sum(scores[a] > scores[b] for a, b in ((0, 1), (0, 2), (1, 2))) / 3


def test_whole_dialogs_are_pairs_of_their_last_answers(tmp_path):
    dialog = "\n\nHuman: q\n\nAssistant: "
    found = numbers(tmp_path / "o.json", write(tmp_path / "hh.jsonl", {"chosen": dialog + "aa", "rejected": dialog}))
    assert found["all"]["accuracy"] == 1.0 and found["all"]["if_longer"] == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "bad.jsonl:1: .*'rejected'"),
        ({"instruction": "p", "input": "", "responses": ["a", "b"], "ranks": [1]}, "'ranks' holds 1 for 2 responses"),
        (
            {"instruction": "p", "input": "", "responses": ["a", "b"], "ranks": [1, 1]},
            "'ranks' is 1 for every response",
        ),
    ],
)
def test_mistakes(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        job(["--reward", COUNT_A, "--data", write(tmp_path / "bad.jsonl", row)])
