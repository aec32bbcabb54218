"""The forecast of a real run, against what a step does."""

import json

import pytest
import torch

from engine.init_model import init_model
from launch.real import forecast, stages
from launch.real.data import make_data
from launch.real.step import Step
from tests.greetings import GREETINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a base model of 13 layers and the data of a run."""
    folder = tmp_path_factory.mktemp("forecast")
    init_model(list(GREETINGS.values()) * 2, 320, folder / "base", family="bloom", layers=13, hidden=16, heads=2)
    make_data("ne", folder / "data", None, None)
    return folder


def test_every_step_that_computes_is_forecast_and_what_is_done_keeps_its_forecast(folder):
    todo = list(stages.steps("ne", folder, folder / "base", [0, 1], "float32"))
    lines = list(forecast.write_forecast(folder / "base", todo, folder / "forecast.json", "float32"))
    found = forecast.read_forecast(folder / "forecast.json")
    assert set(found) == {step.name for step in todo} - {"rankings"}
    assert lines[0].startswith(f"{len(todo)} steps, 0 done; about ")
    assert [line.split()[0] for line in lines[1:]] == ["sft", "sample", "reward", "ppo", "score"]
    assert found["rlhf_0"] == found["rlhf_1"]
    assert found["check"].seconds < found["rlhf_0"].seconds  # it has no reward model
    assert found["check"].seconds < found["control"].seconds  # noise does not make answers shorter
    assert found["check"].peak_gb < found["rlhf_0"].peak_gb
    assert all(x.seconds > forecast.START_SECONDS and x.peak_gb > forecast.START_GB for x in found.values())

    (folder / "sft").mkdir()
    (folder / "sft" / "result.json").write_text("{}")
    lines = list(forecast.write_forecast(folder / "base", todo, folder / "forecast.json", "float32"))
    assert lines[0].startswith(f"{len(todo)} steps, 1 done;") and not lines[1].startswith("  sft")
    assert forecast.read_forecast(folder / "forecast.json")["sft"] == found["sft"]


def test_the_operations_are_those_of_the_plan(folder):
    """SFT of 12 of 13 layers, counted by hand: 2 a weight forward, 4 backward, and the attention over half a length;
    held-out data forward only, twice."""
    step = next(stages.steps("ne", folder, folder / "base", [0], "float32"))
    model = forecast._Model(folder / "base", torch.float32)
    rows = [json.loads(line) for line in (folder / "data" / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    matrices, head, rate = 12 * 16 * 16, 2 * 320 * 16, 1e9

    def counted(name):
        """Return the operations of a layer on a sequence, and of the head's product on its response."""
        lengths = model._lengths(folder / "data" / f"{name}.jsonl")
        prompt, response = -(-lengths.prompt // 1), -(-lengths.response // 1)
        return (prompt + response) * (2 * matrices + 4 * 16 * (prompt + response) / 2), head * response

    layer, predicted = counted("sft")
    records = -(-2 * len(rows) // 32) * 32  # of two epochs, whole steps
    flops = records * (layer * (1 + 3 * 12) + 3 * predicted)
    layer, predicted = counted("heldout_tasks")
    flops += 2 * model._lengths(folder / "data" / "heldout_tasks.jsonl").records * (13 * layer + predicted)
    expected = forecast.START_SECONDS + flops / (rate * forecast.REACHED[torch.float32]["sft"])
    assert model.expected(step, rate).seconds == pytest.approx(expected, rel=1e-6)


def test_answers_are_as_long_as_what_their_model_learned(folder):
    model, data = forecast._Model(folder / "base", torch.float32), folder / "data"
    learned, right = (model._lengths(data / f"{name}.jsonl").response for name in ("sft", "rl"))
    assert right < 0.8 * learned  # half of the demonstrations go on after the right answer
    steps = {step.name: step for step in stages.steps("ne", folder, folder / "base", [0], "float32")}
    for name, response in {"rlhf_0": right, "check": right, "control": learned, "ranking samples": learned}.items():
        work, _ = model._work(forecast.stage_of(steps[name]), steps[name])
        assert work.new_tokens == -(-response // 1), name
    heldout = model._lengths(data / "heldout_tasks.jsonl").response
    sampled = {"base": stages.NEW_TOKENS, "sft": learned, "rlhf_0": heldout, "control": learned, "check": heldout}
    for name, response in sampled.items():
        work, _ = model._work("sample", steps[f"{name}.tasks"])
        assert work.new_tokens == -(-response // 1), name
        assert model._unwritten(folder / "answers" / f"{name}.tasks.jsonl").response == response, name


def test_questions_of_benchmarks_are_counted_with_their_options(folder, tmp_path):
    """Two questions of ARC's form, and one of TruthfulQA, whose options are scored for MC1 and MC2."""
    model, benchmarks = forecast._Model(folder / "base", torch.float32), tmp_path / "benchmarks"
    asked = {"instruction": "a b", "option_a": "a", "option_b": "b", "option_c": "a b", "answer": "A"}
    judged = {"question": "a", "mc1_targets_choices": ["a", "b"], "mc2_targets_choices": ["a", "b", "a", "b"]}
    damaged = [{"question": "a"}, {"instruction": None, "option_a": "a"}, {"instruction": "a", "option_a": 3}]
    for name, rows in {
        "m_arc/ne_test.json": [asked, *damaged, asked],
        "m_truthfulqa/ne_validation.json": [judged],
    }.items():
        (benchmarks / name).parent.mkdir(parents=True)
        (benchmarks / name).write_text(json.dumps(rows))
    argv = ("launch/evaluate.py", "--data-dir", str(benchmarks))
    step = Step("evaluate_base", argv, tmp_path / "results.json")
    work, questions = model._evaluation(step)
    one, two = model._tokens("a"), model._tokens("a b")
    options = [one, one, two] * 2 + [one] * 6
    assert questions == 4 and work.rollouts == 3
    assert work.prompt_tokens == -(-(2 * two + 2 * one) // 4)
    assert work.new_tokens == -(-sum(options) // len(options))
    layers = sum(phase.flops for phase in forecast.phases(model.model, work))
    flops = 4 * (layers + 3 * work.new_tokens * 2 * 320 * 16)  # the head's product is on the options alone
    expected = forecast.START_SECONDS + flops / (1e9 * forecast.REACHED[torch.float32]["evaluate"])
    assert model.expected(step, 1e9).seconds == pytest.approx(expected, rel=1e-6)
