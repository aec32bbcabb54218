"""`stats`: the length table, the language and source of records, the verbs, and the figure's geometry."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from datagen.__main__ import main
from datagen.kits import load_kit
from datagen.sources import Source
from datagen.statistics.lengths import Lengths, languages_of, length_lines, measure
from datagen.statistics.root_verbs import Root
from datagen.statistics.sunburst import Verb, arcs, svg
from datagen.stats import top_verbs
from engine.base.records import write_jsonl


def _record(path="data/en.jsonl", **fields):
    return Source(path, 1, {"instruction": "Name it.", "input": "", "output": "Yes.", **fields})


def test_lengths_by_hand():
    records = [
        _record(instruction="Add these two.", input="3 and 4", output="7"),
        _record(instruction="Say hello", output=""),
        _record(path="zh.jsonl", instruction="你好吗", output="我很好。"),
    ]
    groups = measure(records, languages_of(records))
    english = groups["en", "en"]
    assert english == Lengths(2, 3 + 3 + 2, len("Add these two.\n3 and 4") + len("Say hello"), 1, 1, 1)
    assert english.averages() == (4.0, 15.5, 1.0, 1.0)
    assert groups["zh", "zh"].averages() == (3.0, 3.0, 3.0, 4.0)


def test_averages_of_no_records_are_zero():
    assert Lengths().averages() == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("path", "fields", "language"),
    [
        ("alpaca_en.jsonl.gz", {}, "en"),
        ("x/okapi_ne/sft.jsonl", {}, "ne"),
        ("runs/vi/data/sft.jsonl", {}, "vi"),
        ("alpaca.jsonl", {}, "?"),
        ("alpaca_en.jsonl", {"lang": "hr"}, "hr"),
        ("alpaca_en.jsonl", {"lang": 3}, "en"),
        ("m_arc/ne_test.json", {}, "ne"),
        ("new-zh.jsonl", {}, "zh"),
        ("run_id_7.jsonl", {}, "?"),
        ("do_it_now.jsonl", {}, "?"),
        ("run_id_7_en.jsonl", {}, "en"),
        ("a_hr_b/alpaca.jsonl", {}, "?"),
        ("day7/ru2/alpaca.jsonl", {}, "?"),
    ],
)
def test_language_of_a_record(path, fields, language):
    """A language code counts at the start or end of a name. This record is too short to contradict it."""
    assert languages_of([_record(path, instruction="3 + 4", output="7", **fields)]) == [language]


@pytest.mark.parametrize(
    ("path", "lang", "language"),
    [
        ("run_id.jsonl", "en", "?"),
        ("hr_interviews.jsonl", "en", "?"),
        ("it/works.jsonl", "en", "?"),
        ("answers_ca.jsonl", "hi", "?"),
        ("run_id.jsonl", "id", "id"),
        ("hr_alpaca.jsonl", "hr", "hr"),
        ("alpaca_en.jsonl", "en", "en"),
        ("okapi_zh/sft.jsonl", "zh", "zh"),
    ],
)
def test_language_code_in_a_path_counts_unless_the_texts_contradict(path, lang, language):
    texts = load_kit(lang).texts
    records = [_record(path, instruction=texts[n], output=texts[n + 10]) for n in range(10)]
    assert languages_of([*records, _record(path, lang="sr")]) == [language] * 10 + ["sr"]


def test_sources_are_separate_groups():
    records = [_record("en.jsonl", source="alpaca"), _record("en.jsonl", source="generated"), _record("en.jsonl")]
    groups = measure(records, languages_of(records))
    assert list(groups) == [("en", "alpaca"), ("en", "generated"), ("en", "en")]
    lines = length_lines(groups)
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


def test_top_verbs_by_hand():
    roots = (
        [Root("write", "poem")] * 3 + [Root("write", "story")] * 2 + [Root("list", "fact")] * 4 + [Root("be", "")] * 9
    )
    assert top_verbs(roots, 5) == [Verb("write", 5, [("poem", 3), ("story", 2)]), Verb("list", 4, [("fact", 4)])]
    assert top_verbs([*roots, *[Root("write", n) for n in "zyxw"]], 1) == [
        Verb("write", 9, [("poem", 3), ("story", 2), ("w", 1), ("x", 1)])
    ]


def test_arcs_fill_the_circle_in_proportion_to_the_pairs():
    verbs = [Verb("write", 60, [("poem", 3), ("story", 3)]), Verb("list", 2, [("fact", 2)])]
    pieces = list(arcs(verbs))
    inner = [arc for arc in pieces if arc.ring == 0]
    assert [arc.begin for arc in inner] == pytest.approx([0, 1.5 * math.pi])
    assert [arc.end for arc in inner] == pytest.approx([1.5 * math.pi, 2 * math.pi])
    assert [arc.count for arc in inner] == [60, 2]
    poem, story, fact = (arc for arc in pieces if arc.ring == 1)
    assert (poem.begin, story.begin) == (0, poem.end)
    assert poem.end - poem.begin == pytest.approx(2 * math.pi * 3 / 8)
    assert (fact.begin, fact.end) == (inner[1].begin, inner[1].end)


def test_svg_is_well_formed_and_escapes_words():
    for verbs in ([], [Verb("a<b&c", 1, [('"q"', 1)])], [Verb("write", 6, [("poem", 3)]), Verb("list", 2, [])]):
        root = ElementTree.fromstring(svg(verbs, 10))
        titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == sum(1 + len(verb.objects) for verb in verbs)
    assert titles == ["poem: 3 (30.00%)", "write: 6 (60.00%)", "list: 2 (20.00%)"]


def test_stats_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Write a poem about {n}.", "input": "", "output": "la la"} for n in "abc"]
    write_jsonl("new_en.jsonl", [*rows, {"instruction": "List four facts", "source": "alpaca"}])
    write_jsonl("ne.jsonl", [{"instruction": "नमस्ते भन", "input": "", "output": "नमस्ते"}])
    assert main(["stats", "new_en.jsonl", "ne.jsonl", "--figure", "verbs.svg"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["en", "new_en", "3"],
        ["en", "alpaca", "1"],
        ["ne", "ne", "1"],
    ]
    assert "4 of 4 instructions (100.0%) have a root verb" in out
    assert "write              3  75.0%  poem 3" in out
    assert "poem: 3 (75.00%)" in (tmp_path / "verbs.svg").read_text()
    assert main(["stats", "ne.jsonl"]) == 0
    assert "the rules read only English" in capsys.readouterr().out


def test_png_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("en.jsonl", [{"instruction": "Write a poem."}])
    assert main(["stats", "en.jsonl", "--figure", "verbs.png"]) == 0
    assert (tmp_path / "verbs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["en.jsonl", "--figure", "v.pdf"], "--figure v.pdf: the name must end in .svg or .png"),
        (["en.jsonl", "--top", "0"], "--top 0 must be 1 or more"),
        (["none.jsonl"], "none.jsonl: there is no such file"),
        (["bad.jsonl"], "bad.jsonl:1: field 'input' is None: every record needs a string there"),
        (["ne.jsonl", "--figure", "v.svg"], "no record is in English"),
        ([], "the following arguments are required: FILE"),
    ],
)
def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl("en.jsonl", [{"instruction": "Write a poem."}])
    write_jsonl("ne.jsonl", [{"instruction": "नमस्ते"}])
    write_jsonl("bad.jsonl", [{"instruction": "Write a poem.", "input": None}])
    assert main(["stats", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
