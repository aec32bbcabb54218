"""Several draws of shots: means, standard deviation and interval by hand, and draws of other documents."""

from __future__ import annotations

import math

import pytest

from engine.base.errors import UserError
from evaluation.results.spread import Draw, about_draws, combine, spread_of
from evaluation.results.summary import summarise


def draw(seed, rights, ties=(), first=0):
    records = [
        {"id": f"q{i}", "index": i, "scores": {"acc": float(right)}, "ties": {"acc": i in ties}, "chance": 0.25,
         "context_sha256": f"{seed}/{i}", "subject": "stem"}
        for i, right in enumerate(rights, first)
    ]  # fmt: skip
    about = {"task": "arc", "protocol": "okapi", "seed": seed, "prompts_sha256": f"p{seed}", "shots": 2}
    return Draw(seed, about, records)


DRAWS = [draw(3, [1, 0, 0, 1]), draw(4, [1, 0, 1, 1], ties=[2]), draw(5, [1, 0, 0, 0])]


def lines_of(records):
    return summarise("arc", "ne", ("acc",), {}, "documents", records)


def test_mean_and_spread_by_hand():
    records = combine(DRAWS)
    assert [r["scores"]["acc"] for r in records] == pytest.approx([1, 0, 1 / 3, 2 / 3])
    assert [r["ties"]["acc"] for r in records] == [False, False, True, False]
    assert [(r["id"], r["index"], r["subject"]) for r in records] == [(f"q{i}", i, "stem") for i in range(4)]
    spread = spread_of(lines_of(records), {d.seed: lines_of(d.records) for d in DRAWS})
    assert list(spread) == ["arc_ne", "arc_ne_stem"]
    found = spread["arc_ne"]["acc"]
    # Draws 1/2, 3/4, 1/4: mean 1/2, standard deviation sqrt((0 + 1/16 + 1/16) / 2) = 1/4.
    assert (found["seeds"], found["values"], found["std"]) == ([3, 4, 5], [0.5, 0.75, 0.25], 0.25)
    # Documents 1, 0, 1/3, 2/3: variance (1/4 + 1/4 + 1/36 + 1/36) / 3 = 5/27, standard error sqrt(5/27/4).
    half = 1.959964 * math.sqrt(5 / 27 / 4)
    assert (found["low"], found["high"]) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))


def test_one_draw_has_no_spread_and_one_document_no_interval():
    one = draw(0, [1])
    found = spread_of(lines_of(combine([one])), {0: lines_of(one.records)})["arc_ne"]["acc"]
    assert (found["std"], found["low"], found["high"]) == (None, None, None)


def test_contexts_of_all_draws_are_in_the_hash():
    one, other = combine(DRAWS[:2]), combine([DRAWS[0], DRAWS[2]])
    assert one[0]["context_sha256"] != other[0]["context_sha256"]


def test_draws_of_other_documents_are_refused():
    with pytest.raises(UserError, match="seed 0 and seed 1 give other documents of arc, as protocol okapi draws them"):
        combine([draw(0, [1, 0]), draw(1, [1, 0], first=1)])


def test_manifest_entry_lists_the_hashes_of_the_draws():
    assert about_draws(DRAWS[:2], [3, 4, 9]) == {
        "task": "arc", "protocol": "okapi", "shots": 2, "seed": "several", "seeds": [3, 4, 9],
        "prompts_sha256": ["p3", "p4"],
    }  # fmt: skip
