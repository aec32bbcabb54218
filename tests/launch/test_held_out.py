"""Held-out data, merged rankings, warm-up and score statistics of the trainers."""

from __future__ import annotations

import json
import re

import pytest

from engine.report import __main__ as report
from engine.run.kept import in_words
from engine.training import exact_match
from launch import reward
from tests.launch import small
from tests.launch.jobs import ON_RANKINGS, TRAINERS, assert_says, run


@pytest.fixture(autouse=True)
def alone():
    with small.alone():
        yield


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_sft_held_out_loss_and_exact_match(here, monkeypatch, capfd):
    asked, generate = [], exact_match.generate
    monkeypatch.setattr(exact_match, "generate", lambda *args, **more: asked.append(1) or generate(*args, **more))
    small.write_rows(here / "other.jsonl", [{"instruction": "x", "input": "", "output": "Good morning"}])
    run(monkeypatch, "sft", {"eval-data": "other.jsonl", "max-steps": "3", "epochs": "3", "eval-every": "1"})
    said, result = capfd.readouterr().out, result_of(here / "out")
    rows = [json.loads(line) for line in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert list(losses) == [0, 1, 2, 3]
    assert (result["heldout_loss_before"], result["heldout_loss"]) == (losses[0], losses[3])
    assert not asked and "exact_match" not in result
    assert_says(said, "held out  other.jsonl (1 sequences)", "held out, after step 0: loss", "loss on held-out data")
    assert "trained on" not in said
    changes = {"eval-data": "prompts.jsonl", "exact-match": "true", "output": "exact"}
    run(monkeypatch, "sft", changes)
    assert asked and "exact_match" in result_of(here / "exact")
    assert_says(capfd.readouterr().out, "5 of 5 held-out records have a prompt that is trained on")


def test_reward_model_without_held_out_rankings(here, monkeypatch, capfd):
    """The model folder contains its score moments, and PPO reads them from there."""
    run(monkeypatch, "reward", {"heldout": "0", "output": "all"})
    result, said = result_of(here / "all"), capfd.readouterr().out
    assert not {"accuracy", "accuracy_before"} & result.keys()
    assert_says(said, "5 rankings, 15 responses", "held out  nothing")
    config = json.loads((here / "all" / "model" / "config.json").read_text())
    assert (config["score_mean"], config["score_std"]) == (result["score_mean"], result["score_std"])
    (here / "all" / "model").rename(here / "moved")
    run(monkeypatch, "ppo", {"reward": "moved", "output": "with"})
    said = capfd.readouterr().out
    assert "scores clipped to plus and minus 10" in said and "score_mean" not in said
    run(monkeypatch, "ppo", {"reward": "rm", "output": "without"})
    assert_says(capfd.readouterr().out, "note: rm/config.json has no score_mean and score_std", "scores not clipped")


@pytest.mark.parametrize("job", ["sft", "ppo"])
@pytest.mark.parametrize(("monitor", "named", "exists"), [
    ("tensorboard", "tensorboard --logdir out/tb", "out/tb"), ("none", "out/metrics.jsonl", "out/metrics.jsonl"),
])  # fmt: skip
def test_the_last_lines_name_curves_that_exist(here, monkeypatch, capfd, job, monitor, named, exists):
    run(monkeypatch, job, {"monitor": monitor})
    assert re.search(rf"curves:? +{named}\n", capfd.readouterr().out) and (here / exists).exists()


def test_constant_reward_model_is_refused_before_any_work(here, refused):
    small.make_reward_model(here / "flat", here / "m", score=0.0)
    config = json.loads((here / "flat" / "config.json").read_text())
    (here / "flat" / "config.json").write_text(json.dumps({**config, "score_mean": 0.0, "score_std": 0.0}))
    assert_says(refused("ppo", {"reward": "flat"}), "score_std 0.0", "all equal, train it again")
    assert_says(refused("ppo", {"reward": "flat", "model": None}), "score_std 0.0")


def test_rankings_of_a_prompt_are_merged_and_split_together(here, monkeypatch, capfd):
    pairs = [("yes", "no"), ("no", "good"), ("oh", "ah")]
    rows = [
        {"instruction": f"Say it {p}", "input": "", "prefered_output": better, "rejected_output": worse}
        for better, worse in pairs
        for p in range(6)
    ]
    rows.append({"instruction": "Alone", "input": "", "responses": ["a b", "a c", "a d"], "ranks": [1, 2, 3]})
    small.write_rows(here / "pairs.jsonl", rows)
    made, trainer = [], reward.RewardTrainer
    monkeypatch.setattr(reward, "RewardTrainer", lambda *args: made.append(trainer(*args)) or made[-1])
    run(monkeypatch, "reward", {"data": "pairs.jsonl", "heldout": "0.5"})
    sides = [{r.examples[0].tokens[: r.examples[0].prompt_len] for r in side}
             for side in (made[0].records, made[0].heldout)]  # fmt: skip
    assert not sides[0] & sides[1] and sum(map(len, sides)) == 7
    assert len(made[0].records) + len(made[0].heldout) == 13
    assert sorted(len(r.examples) for r in (*made[0].records, *made[0].heldout)) == [2] * 6 + [3] * 7
    assert_says(
        capfd.readouterr().out,
        "pairs.jsonl: 19 rankings of 7 prompts merged into 13",
        "6 prompts keep more than one ranking",
    )


def test_responses_cut_to_equal_tokens_are_counted(here, refused, monkeypatch, capfd):
    same = {**small.RANKINGS[0], "responses": ["good " * 60 + "yes", "good " * 60 + "no"], "ranks": [1, 2]}
    small.write_rows(here / "k.jsonl", [{**same, "id": "long"}, *small.RANKINGS[1:]])
    run(monkeypatch, "reward", {"data": "k.jsonl", "truncate": "right", "tokens-per-microbatch": "300"})
    said = capfd.readouterr().out
    assert_says(said, "k.jsonl: 1 of 5 rankings hold answers that are equal as tokens", "1 of them have nothing left")
    small.write_rows(here / "none.jsonl", [same])
    changes = {"data": "none.jsonl", "truncate": "right"}
    with pytest.raises(SystemExit):
        run(monkeypatch, "reward", {**changes, "output": "none"})
    assert "none.jsonl has no usable ranking: give responses that differ" in capfd.readouterr().err


def test_header_shows_the_warmup(here, monkeypatch, capfd):
    run(monkeypatch, "sft", {"preset": "okapi"})
    said = capfd.readouterr().out
    assert_says(said, "rate      2e-05, cosine (a tenth of the run, where the preset has 300: --warmup-steps 300 takes")
    assert "warning" not in said
    run(monkeypatch, "sft", {"warmup-steps": "20", "output": "asked"})
    assert_says(
        capfd.readouterr().out, "cosine after a warm-up of 20 steps", "warning: the warm-up of 20 steps is longer"
    )


@pytest.mark.parametrize("job", TRAINERS)
def test_the_best_step_is_exported_and_named(here, monkeypatch, capfd, job):
    """In the result, the run's config.json, the model card, the console and the report; and shown again later."""
    data = "rankings.jsonl" if job in ON_RANKINGS else "prompts.jsonl"
    measure = "score" if job == "ppo" else "loss"
    changes = {"max-steps": "3", "epochs": "3", "eval-data": data, "eval-every": "1", "keep-best": measure, "lr": "0.5"}
    run(monkeypatch, job, changes)
    said, kept = capfd.readouterr().out, result_of(here / "out")["kept"]
    line = in_words(kept)
    assert kept["measured"] == 3 and said.count(line) == 2
    assert json.loads((here / "out" / "config.json").read_text())["kept"] == kept
    assert f"- weights {line}" in (here / "out" / "model" / "README.md").read_text()
    assert_says(said, "held out, after iteration 3: score" if job == "ppo" else "held out, after step 3:", "best ")
    assert not (here / "out" / "best.safetensors").exists()
    assert report.main([str(here / "out")]) == 0
    assert_says((here / "out" / "report.html").read_text(), line, "ring: the exported step", ">kept: ")
    run(monkeypatch, job, changes)
    assert line in capfd.readouterr().out


@pytest.mark.parametrize(("job", "changes", "words"), [
    ("sft", {"keep-best": "loss"}, ["--keep-best loss is given without --eval-every"]),
    ("sft", {"keep-best": "acc", "eval-every": "1"}, ["--keep-best is 'acc'", "measures loss, give one"]),
    ("sft", {"keep-best": "loss", "eval-every": "1"}, ["no data is held out: give --eval-data"]),
    ("reward", {"keep-best": "score", "eval-every": "1"}, ["measures loss, accuracy"]),
    ("reward", {"keep-best": "loss", "eval-every": "1", "heldout": "0"}, ["give --eval-data, or --heldout above 0"]),
    ("dpo", {"keep-best": "loss", "eval-every": "1", "heldout": "0"}, ["give --eval-data, or --heldout above 0"]),
    ("ppo", {"keep-best": "score", "eval-every": "1"}, ["no data is held out: give --eval-data"]),
    ("ppo", {"eval-every": "1"}, ["--eval-every is 1 and no prompt is held out"]),
    ("ppo", {"target-kl": "0"}, ["--target-kl is 0.0: give more than 0 nats"]),
    ("ppo", {"stop-kl": "-2"}, ["--stop-kl is -2.0: give more than 0 nats"]),
])  # fmt: skip
def test_flags_of_the_best_step_that_make_no_sense(refused, job, changes, words):
    assert_says(refused(job, changes), *words)


def test_exact_match_needs_outputs(here, monkeypatch, capfd):
    small.write_rows(
        here / "open.jsonl", [{**row, "output": "" if row["id"] == "c" else "x"} for row in small.INSTRUCTIONS]
    )
    changes = {"eval-data": "open.jsonl", "eval-every": "1", "keep-best": "exact_match"}
    with pytest.raises(SystemExit):
        run(monkeypatch, "ppo", changes)
    assert_says(capfd.readouterr().err, "record c of open.jsonl has no output", "give --keep-best score")
    assert not (here / "out").exists()
