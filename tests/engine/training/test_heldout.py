"""Sampled answers to held-out prompts: intervals by hand, what counts as right, ranks, and equal random numbers."""

import math
import statistics

import pytest

from engine.cli.console import Console
from engine.distributed.world import start_world
from engine.models import load_model
from engine.text.encoding import Prompt
from engine.text.tokenizer import load_tokenizer
from engine.training.heldout import Answers, Estimate, checked, compared, sample_answers, shown
from engine.training.scorers import load_scorer
from tests.engine.training.trainers import settings
from tests.launch.small import make_model
from tests.ranks import run_ranks


def test_interval_is_1_96_standard_errors_over_prompts():
    values = [0.0, 0.25, 1.0, 0.5, 0.25]
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(0.4)
    assert estimate.half == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(5))
    assert Estimate.of([0.3]).half == math.inf, "one prompt says nothing about others"
    assert shown("exact_match", Estimate(0.2441, 0.0213)) == "24.4 ± 2.1 %"
    assert shown("score", Estimate(0.2441, 0.0213)) == "0.244 ± 0.021"


def test_interval_of_a_ratio_counts_prompts():
    """Equal counts: the interval of the shares. Else as by hand, from how far each prompt is from the common ratio."""
    right, pairs = [1, 3, 0, 2], [3, 3, 3, 3]
    same = Estimate.of([r / p for r, p in zip(right, pairs)])
    assert (Estimate.of_ratio(right, pairs).mean, Estimate.of_ratio(right, pairs).half) == pytest.approx(
        (same.mean, same.half)
    )
    right, pairs = [1, 6, 0, 2], [1, 10, 3, 6]
    residuals = [r - 9 / 20 * p for r, p in zip(right, pairs)]
    half = 1.96 * math.sqrt(4 / 3 * sum(x * x for x in residuals)) / 20
    estimate = Estimate.of_ratio(right, pairs)
    assert (estimate.mean, estimate.half) == pytest.approx((9 / 20, half))
    assert Estimate.of_ratio([1], [3]).half == math.inf


def test_differences_are_paired_by_prompt():
    """Two prompts that differ much and change alike: each mean is unsure, their difference is not."""
    before = Answers([["a"], ["b"]], {"score": [0.0, 10.0]})
    after = Answers([["a"], ["b"]], {"score": [1.0, 11.0]})
    found = compared(before, after)["score"]
    assert found["before"][0] == 5.0 and found["before"][1] > 9
    assert found["difference"] == [1.0, 0.0]


def answers(path, outputs, samples=3, rollouts=6):
    model, tokenizer = load_model(path), load_tokenizer(path)
    prompts = [Prompt(str(i), tuple(range(5, 6 + 3 * i % 7)), f"p{i}", output) for i, output in enumerate(outputs)]
    ppo = settings("ppo", eval_samples=samples, max_new_tokens=6)[-1]
    scorer = load_scorer("tests.engine.training.test_heldout:length_of", model, None, tokenizer, 64)
    eos_ids = (tokenizer.eos_token_id,)
    return sample_answers(
        model, tokenizer, eos_ids, prompts, scorer, ppo, None, 0, rollouts, start_world(), Console(False)
    )


def length_of(prompt: str, response: str) -> float:
    return float(len(response))


def test_result_is_independent_of_ranks_and_rounds(tmp_path):
    """Samples of a prompt differ; an answer is right up to blanks, and right then more when it goes on after it."""
    path = str(make_model(tmp_path / "m"))
    one = run_ranks(answers, 1, path, ["x"] * 5)[0]
    assert len(one.texts) == 5 and all(len(set(row)) > 1 for row in one.texts)
    assert one.measures["score"] == pytest.approx([statistics.fmean(map(len, row)) for row in one.texts])
    outputs = [f" {one.texts[0][0]}\n", one.texts[1][2], "no such answer", one.texts[3][1], "nor this"]
    expected = [sum(t.strip() == o.strip() for t in row) / 3 for row, o in zip(one.texts, outputs)]
    assert sum(expected) >= 1
    for found in [*run_ranks(answers, 1, path, outputs, 3, 1000), *run_ranks(answers, 2, path, outputs)]:
        assert found.texts == one.texts
        assert found.measures["exact_match"] == pytest.approx(expected)
        assert set(found.measures) == {"score", "ended", "length", "exact_match", "right_then_more"}


def test_prompts_without_output_have_no_accuracy(tmp_path):
    found = answers(str(make_model(tmp_path / "m")), ["x", ""])
    assert set(found.measures) == {"score", "ended", "length"}


@pytest.mark.parametrize(
    ("text", "right", "then_more"),
    [
        *(("42", 1, 0), (" 42\n", 1, 0), ("42\nand so on", 0, 1), ("42 and", 0, 0)),
        *(("\n42", 1, 0), ("", 0, 0), ("41\n42", 0, 0)),
    ],
)
def test_exact_match_rules(text, right, then_more):
    assert checked(text, "42") == {"exact_match": right, "right_then_more": then_more}
