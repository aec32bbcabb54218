"""Summaries: means over documents and over subjects, and the fields of results.json that readers of lm-eval use."""

from __future__ import annotations

import pytest

from evaluation.results.summary import results_json, summarise

GROUPS = {"stem": ("algebra", "anatomy"), "other": ("virology",), "empty": ("none",)}


def record(subject, right, tie=False):
    return {"subject": subject, "scores": {"acc": float(right)}, "ties": {"acc": tie}, "chance": 0.25}


# Right answers: algebra 1 of 1, anatomy 1 of 3, virology 0 of 2.
RECORDS = [
    record("algebra", 1), record("anatomy", 1), record("anatomy", 0, tie=True), record("anatomy", 0),
    record("virology", 0), record("virology", 0),
]  # fmt: skip


def summaries(average):
    return {line.name: line for line in summarise("mmlu", "en", ("acc",), GROUPS, average, RECORDS)}


def test_means_over_documents_and_over_subjects():
    over_documents, over_subjects = summaries("documents"), summaries("subjects")
    assert list(over_documents) == [
        "mmlu_en", "mmlu_en_stem", "mmlu_en_other", "mmlu_en_algebra", "mmlu_en_anatomy", "mmlu_en_virology",
    ]  # fmt: skip
    assert over_documents["mmlu_en"].metrics["acc"].value == pytest.approx(2 / 6)
    assert over_subjects["mmlu_en"].metrics["acc"].value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert over_documents["mmlu_en_stem"].metrics["acc"].value == pytest.approx(2 / 4)
    assert over_subjects["mmlu_en_stem"].metrics["acc"].value == pytest.approx((1 + 1 / 3) / 2)
    for lines in (over_documents, over_subjects):
        assert lines["mmlu_en_anatomy"].metrics["acc"].value == pytest.approx(1 / 3)
        assert lines["mmlu_en"].ties == {"acc": 1}
        assert lines["mmlu_en"].count == 6
        assert lines["mmlu_en"].chance == 0.25
        assert lines["mmlu_en_stem"].members == ("mmlu_en_algebra", "mmlu_en_anatomy")


def test_results_json_has_the_fields_of_lm_evals_file():
    lines = list(summaries("documents").values())
    about = {"shots": 5, "protocol": "strict", "data": [{"num_records": 9}]}
    manifest = {"format": 1, "tasks": {"mmlu.en": about}}
    file = results_json({"mmlu.en": lines}, manifest, {"mmlu.en": {"cut": 1}}, {"model": "m"}, {"date": 0.0})
    assert file["results"]["mmlu_en"]["acc,none"] == pytest.approx(1 / 3)
    assert file["results"]["mmlu_en"]["acc_stderr,none"] == pytest.approx(0.21, abs=0.01)
    assert file["results"]["mmlu_en_algebra"]["acc_stderr,none"] == "N/A"
    assert file["groups"]["mmlu_en_stem"] == file["results"]["mmlu_en_stem"]
    assert file["group_subtasks"]["mmlu_en_stem"] == ["mmlu_en_algebra", "mmlu_en_anatomy"]
    assert file["n-shot"]["mmlu_en"] == 5
    assert file["n-samples"]["mmlu_en"] == {"original": 9, "effective": 6}
    assert file["higher_is_better"]["mmlu_en"] == {"acc": True}
    assert file["configs"]["mmlu_en"]["num_fewshot"] == 5
    assert file["versions"]["mmlu_en"] == 1
    assert (file["config"], file["date"], file["manifest"]) == ({"model": "m"}, 0.0, manifest)
