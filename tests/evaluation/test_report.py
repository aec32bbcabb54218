"""The report: intervals and averages against values by hand, which runs may be compared, and the files it writes."""

from __future__ import annotations

import csv
import json
import math

import pytest

from engine.base.errors import UserError
from evaluation import report
from evaluation.results.compare import Difference, common_items, mean_over_languages, paired_difference
from evaluation.results.output import write_json
from evaluation.results.runs import read_runs
from evaluation.results.tables import build_common_tables, build_comparisons, build_tables, in_order
from tests.launch.small import write_rows


def make_run(folder, rights, task="hellaswag", metric="acc", ids=None, **changes):
    """Write an evaluation's folder and return its path. rights: language -> 0 or 1 for each document."""
    folder.mkdir()
    tasks, results = {}, {}
    for lang, values in rights.items():
        names = ids[lang] if ids else [f"item{i}" for i in range(len(values))]
        rows = [
            {"id": name, "index": i, "scores": {metric: v}, "ties": {}, "chance": 0.25, "context_sha256": f"{i}"}
            for i, (name, v) in enumerate(zip(names, values))
        ]
        write_rows(folder / f"{task}.{lang}.jsonl", rows)
        about = {"task": task, "lang": lang, "protocol": "strict", "shots": 0, "data": [lang]}
        tasks[f"{task}.{lang}"] = {**about, **changes.get("about", {})}
        mean = sum(values) / len(values)
        results[f"{task}_{lang}"] = {"alias": "x", f"{metric},none": mean, f"{metric}_stderr,none": 0.1}
    draws = {f"{task}_{lang}": {metric: {"values": values}} for lang, values in changes.get("draws", {}).items()}
    manifest = {"dtype": "float32", "device": "cpu", "versions": {}, "tasks": tasks, **changes.get("manifest", {})}
    write_json(folder / "results.json", {"results": results, "manifest": manifest, "draws": draws})
    return str(folder)


def test_paired_difference_and_its_interval():
    # Differences 1, 0, 0, 1 of the four common documents: mean 1/2, sample variance 1/3, standard error sqrt(1/12).
    found = paired_difference({"a": 0, "b": 1, "c": 0, "d": 0, "x": 1}, {"a": 1, "b": 1, "c": 0, "d": 1, "y": 0})
    half = 1.959964 * math.sqrt(1 / 12)
    assert (found.mean, found.count) == (0.5, 4)
    assert (found.low, found.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))
    assert not found.is_significant
    assert Difference(0.1, 0.01, 0.2, 9).is_significant
    assert paired_difference({"a": 1}, {"a": 0}) is None
    assert paired_difference({"a": 1.0, "b": 0.0}, {"c": 0.0}) is None


def test_common_items_and_means_over_languages():
    sides = [{"a": 1.0, "b": 0.0, "c": 1.0}, {"c": 0.0, "a": 1.0}]
    assert common_items(sides) == ["a", "c"]
    assert mean_over_languages(sides, ["a", "c"]) == {"a": 1.0, "c": 0.5}


def test_languages_are_in_the_order_of_the_papers_tables():
    assert in_order(["ne", "en", "uk", "ru", "vi", "ar", "bn"]) == ["ru", "vi", "ar", "uk", "bn", "ne", "en"]


def test_table_has_group_averages_and_published_ones(tmp_path):
    base = make_run(tmp_path / "base", {"ru": [1, 0], "vi": [0, 0], "ne": [1, 1], "en": [1, 1]})
    tuned = make_run(tmp_path / "tuned", {"ru": [1, 1], "ne": [0, 1]})
    (table,) = build_tables(read_runs([f"BLOOM={base}", tuned], mixed=False))
    assert table.columns == ["BLOOM", "tuned", "chance", "BLOOM-7B1 (published)", "LLaMA-7B (published)"]
    rows = {row.label: [value and round(value.percent, 4) for value in row.values] for row in table.rows}
    assert rows == {
        "Russian (ru)": [50, 100, 25, None, None],
        "Vietnamese (vi)": [0, None, 25, None, None],
        "Nepali (ne)": [100, 50, 25, None, None],
        "English (en)": [100, None, 25, None, None],
        "average, high-resource (2)": [25, None, None, 35.6, None],  # `tuned` lacks a language, so has no average
        "average, low-resource (1)": [100, 50, None, 26.7, None],
        "average, all of them (3)": [50, None, None, None, None],  # without English, as in the paper
        "average, LLaMA's languages (1)": [50, 100, None, None, 37.0],
    }
    assert "tuned has 1 of the 2 languages of 'high': no average" in table.notes


def test_table_has_the_spread_over_draws(tmp_path):
    draws = {"ne": [0.5, 0.75, 0.25], "bn": [0.5, 0.25, 0.25]}
    folder = make_run(tmp_path / "a", {"ne": [1, 0], "bn": [0, 0]}, "arc", draws=draws, about={"seeds": [0, 1, 2]})
    (table,) = build_tables(read_runs([folder], mixed=False))
    stds = {row.label: row.values[0].std for row in table.rows}
    # The average's draws are 50, 50 and 25 %: standard deviation sqrt((2 * 8.333^2 + 16.667^2) / 2) = 14.434.
    expected = {"Bengali (bn)": 14.434, "Nepali (ne)": 25, "average, low-resource (2)": 14.434}
    assert stds == {label: pytest.approx(std, abs=1e-3) for label, std in expected.items()}
    text = report.markdown(read_runs([folder], mixed=False), [table], [], [], [])
    assert "| Nepali (ne) | 50.0 ± 10.0 (std 25.0 of 3 draws) | 25.0 |" in text
    # A single evaluation that was written later over the same task has no draws.
    single = make_run(tmp_path / "b", {"ne": [1, 0]}, "arc", draws=draws)
    assert read_runs([single], mixed=False).cells["b"]["arc", "ne"].draws == {}


def test_average_that_repeats_a_row_is_left_out(tmp_path):
    rights = {"ru": [1, 0], "ne": [1, 1], "bn": [0, 0]}
    labels = {}
    for name, langs in {"one": ["ne"], "group": ["ne", "bn"], "groups": ["ne", "ru"]}.items():
        folder = make_run(tmp_path / name, {lang: rights[lang] for lang in langs}, task="arc")
        (table,) = build_tables(read_runs([folder], mixed=False))
        labels[name] = [row.label for row in table.rows if row.is_average]
    assert labels == {"one": [], "group": ["average, low-resource (2)"], "groups": ["average, all of them (2)"]}


def test_differences_are_over_common_documents(tmp_path):
    ids = {"ru": ["a", "b", "c", "d"], "ne": ["d", "c", "a", "z"]}
    a = make_run(tmp_path / "a", {"ru": [0, 1, 0, 0], "ne": [0, 0, 0, 0]}, ids=ids)
    b = make_run(tmp_path / "b", {"ru": [1, 1, 0, 1], "ne": [1, 0, 1, 1]}, ids=ids)
    runs = read_runs([a, b], mixed=False)
    found, notes = build_comparisons(runs)
    ru, ne, both = found
    assert (ru.language, ru.difference.mean, ru.difference.count) == ("ru", 0.5, 4)
    assert (ne.language, ne.difference.mean) == ("ne", 0.75)
    # On items a, c and d, ru gains 1, 0, 1 and ne gains 1, 0, 1.
    assert (both.language, both.difference.count) == ("2 languages, common items", 3)
    assert both.difference.mean == pytest.approx(2 / 3)
    assert notes == []
    (table,) = build_common_tables(runs)
    assert [[round(value.percent) for value in row.values] for row in table.rows] == [[0, 67], [0, 67]]
    assert table.notes == ["3 items that all have"]


def test_row_numbers_are_not_matched_across_languages(tmp_path):
    rights = {"ru": [1, 0, 1], "ne": [0, 0, 1]}
    rows = dict.fromkeys(rights, ["0", "1", "2"])
    paths = [make_run(tmp_path / n, rights, "truthfulqa_mc1", "mc1", ids=rows) for n in "ab"]
    runs = read_runs(paths, mixed=False)
    assert build_common_tables(runs) == []
    assert [c.language for c in build_comparisons(runs)[0]] == ["ru", "ne"]


@pytest.mark.parametrize(("about", "words"), [
    ({"protocol": "okapi"}, r"hellaswag: a \(ru\) has protocol 'strict', b \(ru\) has 'okapi'"),
    ({"shots": 5}, "has shots 0, b .* has 5"),
    ({"limit": 10}, "limit None, b .* has 10"),
    ({"data": ["other"]}, "hellaswag.ru: a and b read different data files"),
])  # fmt: skip
def test_runs_with_other_settings_need_mixed_and_get_a_note(tmp_path, about, words):
    a = make_run(tmp_path / "a", {"ru": [1, 0]})
    b = make_run(tmp_path / "b", {"ru": [1, 1]}, about=about)
    with pytest.raises(UserError, match=f"{words}: report them apart, or side by side with --mixed"):
        read_runs([a, b], mixed=False)
    (note,) = read_runs([a, b], mixed=True).notes
    assert note in report.markdown(read_runs([a, b], mixed=True), [], [], [], [])


def test_another_device_gets_a_note(tmp_path):
    a = make_run(tmp_path / "a", {"ru": [1, 0]})
    b = make_run(tmp_path / "b", {"ru": [1, 1]}, manifest={"device": "cuda", "versions": {"torch": "3"}})
    (note,) = read_runs([a, b], mixed=False).notes
    assert note.endswith("differ in device, versions.torch: scores may differ in the last digits")


def test_different_prompts_under_equal_settings_get_a_note(tmp_path):
    a, b = (make_run(tmp_path / n, {"ru": [1, 0]}) for n in "ab")
    rows = [json.loads(line) for line in (tmp_path / "b" / "hellaswag.ru.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "b" / "hellaswag.ru.jsonl", [rows[0], {**rows[1], "context_sha256": "shorter"}])
    assert build_comparisons(read_runs([a, b], mixed=False))[1] == [
        "hellaswag.ru: 1 of 2 prompts differ between a and b"
    ]


def test_one_name_takes_one_folder_per_language(tmp_path):
    ru, ne = (make_run(tmp_path / lang, {lang: [1, 0]}) for lang in ("ru", "ne"))
    assert list(read_runs([f"RLHF={ru}", f"RLHF={ne}"], mixed=False).cells["RLHF"]) == [
        ("hellaswag", "ru"), ("hellaswag", "ne"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="RLHF has hellaswag.ru twice"):
        read_runs([f"RLHF={ru}", f"RLHF={ru}"], mixed=False)
    with pytest.raises(UserError, match="absent is not a folder: give the --output of launch/evaluate.py"):
        read_runs(["absent"], mixed=False)


def test_command_writes_markdown_csv_and_a_picture(tmp_path, capsys):
    a = make_run(tmp_path / "a", {"ru": [0, 0, 0, 0, 0], "ne": [1, 0, 0, 1, 0]})
    b = make_run(tmp_path / "b", {"ru": [1, 1, 1, 1, 0], "ne": [1, 0, 0, 0, 0]})
    out = tmp_path / "out"
    assert report.main([a, f"RLHF={b}", "--output", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert text in capsys.readouterr().out
    assert "| Russian (ru) | 0.0 ± 10.0 | 80.0 ± 10.0 | 25.0 |  |  |" in text
    assert "| hellaswag | acc | ru | RLHF - a | 62,800 | 5 | none | 80.0 % |" in text
    assert "| hellaswag | acc | ru | RLHF - a | **+80.0** | +40.8 to +119.2 | 5 |" in text
    with open(out / "tables.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = next(r for r in rows if (r["items"], r["language"], r["model"]) == ("all", "Nepali (ne)", "a"))
    assert (found["percent"], found["documents"]) == ("40.0", "5")
    with open(out / "differences.csv", newline="") as file:
        assert [row["language"] for row in csv.DictReader(file)] == ["ru", "ne", "2 languages, common items"]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
