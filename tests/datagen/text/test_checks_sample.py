"""Tests of the labelled sample of translations: its size, and the error rates of the checks on it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from datagen.text.refusals import FILE
from engine.base.languages import LANGUAGES
from tests.datagen.text.checks_sample import HALVES, fault_of, kit_cases, made_faults, written_cases

WRITTEN = list(written_cases())
GOOD = [case for case in WRITTEN if case.is_good]
TRANSLATED = set(LANGUAGES) - {"en"}


def test_sample_is_large_enough_and_covers_every_language():
    """300 cases without an error show an error rate below 1 % (95 % confidence)."""
    for half in HALVES:
        langs = Counter(case.lang for case in GOOD if case.half == half)
        assert langs.total() >= 300 and set(langs) == TRANSLATED and min(langs.values()) >= 12
    texts = [{case.source for case in GOOD if case.half == half} for half in HALVES]
    assert not texts[0] & texts[1]
    assert len({(case.lang, case.target) for case in GOOD}) == len(GOOD)


@pytest.mark.parametrize("half", HALVES)
def test_good_translations_pass(half):
    rejected = {(case.kind, case.lang): fault for case in GOOD if case.half == half and (fault := fault_of(case))}
    assert len(rejected) < 0.01 * sum(case.half == half for case in GOOD), rejected


def test_kit_tasks_pass():
    assert not [case for case in kit_cases(tasks_per_kind=1) if fault_of(case)]


def test_finds_faults_of_the_report_half():
    faults = [case for case in (*WRITTEN, *made_faults(GOOD)) if case.half == "report" and not case.is_good]
    missed = Counter(case.kind for case in faults if not fault_of(case))
    assert len(faults) > 900 and missed.total() <= 0.005 * len(faults), missed
    assert set(missed) <= {"another language", "another digit", "a number left out"}


def test_every_language_has_refusal_patterns():
    refusals = json.loads(FILE.read_text(encoding="utf-8"))
    assert set(refusals) == set(LANGUAGES)
    assert {tuple(patterns) for patterns in refusals.values()} == {
        ("apology", "cannot", "task", "help", "but", "model")
    }
