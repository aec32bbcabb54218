"""prove_demo: a gain must exceed both intervals, and a control that gains is an error."""

import pytest

from engine.base.errors import UserError
from engine.reward_functions import noise
from launch.bench import prove_demo


def result(before, after):
    pair = {"before": list(before), "after": list(after), "difference": [after[0] - before[0], 0.01]}
    return {"heldout": dict.fromkeys(("exact_match", "right_then_more", "score"), pair), "kl_last": 0.5}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [((0.15, 0.02), (0.25, 0.03), True), ((0.15, 0.02), (0.19, 0.03), False), ((0.25, 0.02), (0.15, 0.03), False)],
)
def test_gain_exceeds_both_intervals(before, after, expected):
    assert prove_demo.learned(result(before, after)) is expected


def test_failed_claims_are_named(monkeypatch, capsys):
    won, lost = result((0.15, 0.02), (0.25, 0.03)), result((0.15, 0.02), (0.15, 0.02))
    found = {0: (won, lost), 1: (lost, won)}
    monkeypatch.setattr(prove_demo, "both", lambda lang, seed, *_: dict(zip(("reward model", "noise"), found[seed])))
    prove_demo.job(["--seeds", "0"])
    assert "15.0 ± 2.0 % -> 25.0 ± 3.0 %" in capsys.readouterr().out
    with pytest.raises(UserError, match="not shown for seed 1, reward model; seed 1, noise"):
        prove_demo.job(["--seeds", "0,1"])
    with pytest.raises(UserError, match="--seeds is '0,x'"):
        prove_demo.job(["--seeds", "0,x"])


def test_noise_is_reproducible_with_mean_0_and_std_1():
    scores = [noise("p", f"answer {i}") for i in range(4000)]
    assert scores[7] == noise("p", "answer 7") and scores[7] != noise("q", "answer 7")
    mean = sum(scores) / len(scores)
    assert abs(mean) < 0.06 and abs(sum((s - mean) ** 2 for s in scores) / len(scores) - 1) < 0.06
