"""13-gram overlap with benchmarks: compared with plain Python sets, and its report."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.decontaminate import Benchmarks, report
from engine.base.errors import UserError

_SENTENCE = "the quick brown fox jumps over the lazy dog while seven cats sleep under the old bridge"


def _benchmarks(folder, *records, name="m.json"):
    (folder / name).write_text(json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return Benchmarks([str(folder / name)])


def test_13_grams_overlap_and_12_grams_do_not(tmp_path):
    benchmarks = _benchmarks(tmp_path, {"id": "1", "question": f"Why did {_SENTENCE}?", "choices": ["a", "b"]})
    words = _SENTENCE.split()
    found = benchmarks.overlap({"instruction": "Say why.", "input": f"HERE: {', '.join(words[:13])}!", "output": "so"})
    assert found.field == "input"
    assert found.words == " ".join(words[:13])
    assert (found.path, found.where) == (str(tmp_path / "m.json"), "1 question")
    assert benchmarks.overlap({"input": " ".join([*words[:12], "cow", *words[13:]])}) is None
    assert benchmarks.overlap({"input": " ".join(words[:12])}) is None


def test_all_strings_of_a_benchmark_are_indexed(tmp_path):
    benchmarks = _benchmarks(tmp_path, {"q": "short"}, {"mc1": {"choices": ["x", _SENTENCE], "labels": [1, 0]}})
    assert benchmarks.overlap({"output": _SENTENCE}).where == "1 mc1.choices[1]"
    assert (benchmarks.texts, benchmarks.short_texts) == (3, 2)


def test_other_scripts(tmp_path):
    hindi = "आज सुबह राम और श्याम बाज़ार गए और वहाँ से ताज़े फल और सब्ज़ियाँ लेकर घर लौटे"
    chinese = "今天早上小明和小红一起去市场买了新鲜的水果"
    benchmarks = _benchmarks(tmp_path, {"q": hindi}, {"q": chinese})
    assert benchmarks.overlap({"instruction": f"“{hindi}”"})
    assert benchmarks.overlap({"instruction": f"翻译：{chinese}。"})
    assert benchmarks.overlap({"instruction": "今天早上小明和小红一"}) is None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("ab"), max_size=24).map(" ".join), min_size=1, max_size=4),
    st.lists(st.sampled_from("ab"), max_size=24).map(" ".join),
)
def test_overlap_matches_plain_sets(tmp_path_factory, texts, text):
    def ngrams(text):
        words = text.split()
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    benchmarks = _benchmarks(tmp_path_factory.mktemp("b"), *({"q": t} for t in texts))
    expected = bool(ngrams(text) & set().union(*map(ngrams, texts)))
    assert (benchmarks.overlap({"x": text}) is not None) == expected


def test_hash_collisions_are_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(Benchmarks, "_hash", lambda self, word: 1)
    benchmarks = _benchmarks(tmp_path, {"q": _SENTENCE})
    assert benchmarks.overlap({"x": "completely " * 20}) is None
    assert benchmarks.overlap({"x": _SENTENCE}) is not None


def test_report_counts_by_file(tmp_path):
    benchmarks = _benchmarks(tmp_path, {"q": _SENTENCE}, {"q": "short"}, name="my bench.json")
    lines = report([benchmarks.overlap({"x": _SENTENCE})] * 2, benchmarks)
    assert lines[0] == "2 benchmark texts, of which 1 have fewer than 13 words and cannot overlap"
    assert lines[1] == f"       2  dropped: 13 words in a row from {tmp_path / 'my bench.json'}"


def test_no_benchmarks_no_overlap():
    assert Benchmarks([]).overlap({"x": _SENTENCE}) is None


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.json:1: the record is a number"):
        Benchmarks([str(tmp_path / "bad.json")])


def test_real_benchmarks_overlap_themselves(real_data):
    path = str(real_data / "m_arc" / "ne_validation.json")
    benchmarks = Benchmarks([path])
    records = json.loads((real_data / "m_arc" / "ne_validation.json").read_text(encoding="utf-8"))
    long = [r for r in records if len(r["instruction"].split()) > 20]
    assert len(long) > 50
    assert all(benchmarks.overlap({"instruction": r["instruction"]}) for r in long)
