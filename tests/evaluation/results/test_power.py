"""Power: numbers of documents against values computed by hand and against simulated pairs of models."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.results.compare import paired_difference
from evaluation.results.power import (
    UNPAIRED,
    build_power,
    disagreement,
    documents_needed,
    power_line,
    rounded,
    shown,
    smallest_difference,
)
from evaluation.results.runs import read_runs
from tests.evaluation.test_report import make_run


def test_documents_by_hand():
    # (1.959964 + 0.841621)^2 = 7.848879. Times 0.5 / 0.01^2 = 39,244.4; times 0.2 / 0.01^2 = 15,697.8.
    assert documents_needed(UNPAIRED) == 39_245
    assert documents_needed(0.2) == 15_698
    # Twice the difference takes a quarter: 7.848879 * 0.2 / 0.02^2 = 3,924.4.
    assert documents_needed(0.2, difference=0.02) == 3_925
    # sqrt(7.848879 * 0.5 / 1,169) = 0.05794.
    assert smallest_difference(UNPAIRED, 1_169) == pytest.approx(0.05794, abs=1e-5)
    assert [rounded(n) for n in (39_245, 15_698, 742, 7)] == ["39,200", "15,700", "742", "7"]
    assert (shown(UNPAIRED, 1_169), shown(UNPAIRED, 3)) == ("5.8 % or more", "none")
    assert power_line("arc.ne", 1_169) == (
        "arc.ne: to see a difference of 1 % here you need about 39,200 documents (two models, unpaired, at worst); "
        "these 1,169 show 5.8 % or more"
    )


def test_disagreement_is_over_common_documents():
    a, b = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "x": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.5, "y": 0.0}
    assert disagreement(a, b) == pytest.approx((1 + 0.25) / 4)
    assert disagreement(a, {"z": 1.0}) is None


@pytest.mark.parametrize("share", [0.3, 0.1])
def test_the_test_finds_the_difference_four_times_out_of_five(share):
    # Two models disagree on `share` of the documents, and b is right on 4 % more of all documents than a.
    count, rng = documents_needed(share, difference=0.04), np.random.default_rng(0)
    found = 0
    for _ in range(1_000):
        change = rng.choice([1.0, -1.0, 0.0], size=count, p=[(share + 0.04) / 2, (share - 0.04) / 2, 1 - share])
        b = dict(zip(map(str, range(count)), change.tolist()))
        difference = paired_difference(dict.fromkeys(b, 0.0), b)
        found += difference.low > 0
    assert 0.77 < found / 1_000 < 0.85


def test_two_runs_are_paired_and_one_is_not(tmp_path):
    a = make_run(tmp_path / "a", {"ru": [0, 0, 1, 0], "ne": [1, 0]})
    b = make_run(tmp_path / "b", {"ru": [1, 0, 1, 0]})
    rows = build_power(read_runs([a, b], mixed=False))
    assert [(r.language, r.models, r.variance, r.count) for r in rows] == [
        ("ru", "b - a", 0.25, 4), ("ne", "", UNPAIRED, 2),
    ]  # fmt: skip
