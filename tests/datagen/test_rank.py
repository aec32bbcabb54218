"""`rank`: the order shown, the strict parser, the two turns, the report, and the output for a reward model."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.__main__ import main
from datagen.api.chat import Rejected, Reply
from datagen.embedded import make_embedded
from datagen.rank import RANK_NAMES, RANK_TEMPLATE_FILE, TRANSLATE_NAMES, TRANSLATE_TEMPLATE_FILE, Judge
from datagen.ranking.format import labels, parse_ranking, ranks_of_responses, show_order
from datagen.ranking.report import RankReport
from datagen.run.prompt_templates import read_template
from datagen.simulate.answers import simulated_answer
from engine.base.languages import LANGUAGES
from engine.base.records import read_rankings, write_jsonl
from tests.datagen.api.api_helpers import read_lines
from tests.datagen.serving import serving

RESPONSES = st.lists(st.text(max_size=3), min_size=2, max_size=8)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=26)


def line_of(ranks, spaces="  "):
    """Format ranks as a model would. The ranks need not be dense."""
    groups = [[name for name, rank in zip(labels(len(ranks)), ranks) if rank == value] for value in sorted(set(ranks))]
    return f"{spaces}>{spaces}".join(f"{spaces}={spaces}".join(group) for group in groups)


@given(RANKS, st.sampled_from(["", " ", "  "]))
def test_ranking_round_trip(ranks, spaces):
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)), 1)}
    assert parse_ranking(line_of(ranks, spaces) + "\n", len(ranks)) == [dense[rank] for rank in ranks]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("B > A", "C is missing"), ("B > A > C > D", "no response D"), ("B > A > C = A", "A is named twice"),
        ("B, A, C", "not of the form"), ("It is B > A > C", "not of the form"), ("B > A > C.", "not of the form"),
        ("B > A\n> C", "not of the form"), ("", "not of the form"), ("B >> A > C", "not of the form"),
        ("b > a > c", "not of the form"), ("B > > A", "not of the form"), ("B A C", "not of the form"),
        ("`B > A > C`", "not of the form"), ("B < A < C", "not of the form"), ("1 > 2 > 3", "not of the form"),
    ],
)  # fmt: skip
def test_other_forms_are_refused(text, says):
    assert parse_ranking("B > A = C", 3) == [2, 1, 2]
    with pytest.raises(ValueError, match=says):
        parse_ranking(text, 3)


@given(st.text(alphabet="ABCD>= \n", max_size=12), st.integers(2, 4))
def test_parsed_ranking_names_each_response_once(text, count):
    try:
        ranks = parse_ranking(text, count)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert sorted(name for name in text if name.isalpha()) == labels(count)
    assert sorted(set(ranks)) == list(range(1, max(ranks) + 1)) and len(ranks) == count


@given(RESPONSES, st.integers(0, 3))
def test_distinct_responses_are_shown_once(responses, seed):
    shown = show_order("i", "", responses, seed)
    assert sorted(responses[k] for k in shown) == sorted(set(responses))
    assert shown == show_order("i", "", responses, seed)
    ranks = ranks_of_responses(shown, list(range(1, len(shown) + 1)), responses)
    for a, b in itertools.combinations(range(len(responses)), 2):
        assert (ranks[a] == ranks[b]) == (responses[a] == responses[b])
    assert [responses[k] for k in shown] == sorted(
        set(responses), key=lambda response: ranks[responses.index(response)]
    )


def test_no_position_is_favoured():
    places = [0] * 4
    for n in range(2000):
        places[show_order(f"{n}", "", ["a", "b", "c", "d"], 0).index(0)] += 1
    assert all(420 < count < 580 for count in places)  # 500 expected, standard deviation 19


RECORD = {
    "id": "1",
    "instruction": "Say something",
    "input": "here",
    "responses": ["bad", "good", "bad", "fine"],
    "lang": "ne",
}


def judge(lang="ne", seed=0, rerank_share=0.0):
    templates = read_template(RANK_TEMPLATE_FILE, RANK_NAMES), read_template(TRANSLATE_TEMPLATE_FILE, TRANSLATE_NAMES)
    return Judge(LANGUAGES[lang], *templates, seed, rerank_share)


def ranked(record, lang="ne", order=("good", "fine", "bad"), turn1=lambda shown: shown, reply=None, **options):
    """Return one row, ranked by a model that prefers responses in `order`, and the messages of each request."""
    asked = []

    async def ask(messages, **params):
        asked.append(messages)
        text = messages[0]["content"]
        shown = json.loads(text[text.rindex("\n{\n") :])
        if lang != "en" and len(messages) == 1:
            answer = turn1(shown)
            return answer if isinstance(answer, Reply) else Reply(json.dumps(answer), "stop", 1, 1)
        best_first = sorted(shown["responses"], key=lambda name: order.index(shown["responses"][name]))
        return reply or Reply(" > ".join(best_first), "stop", 1, 1)

    (row,) = asyncio.run(judge(lang, **options).rank(record, ask))
    return row, asked


def test_dialog_has_two_turns_and_identical_responses_tie():
    row, asked = ranked(RECORD)
    assert row["ranks"] == [3, 1, 3, 2] and {**row, "ranks": 0, "shown": 0} == {**RECORD, "ranks": 0, "shown": 0}
    assert [[message["role"] for message in messages] for messages in asked] == [
        ["user"],
        ["user", "assistant", "user"],
    ]
    first, second = asked[1][0]["content"], asked[1][2]["content"]
    assert asked[0][0]["content"] == first and "from Nepali into English" in first
    assert second.startswith("Judge how well each of the responses A, B, C serves")
    assert '"bad"' in first and '"bad"' not in second


def test_empty_input_added_by_turn_1_is_allowed():
    record = {**RECORD, "input": ""}
    row, asked = ranked(record, turn1=lambda shown: {**shown, "input": "", "note": None})
    assert "input" not in asked[0][0]["content"].rsplit("\n{\n", 1)[1] and row["ranks"] == [3, 1, 3, 2]


def test_english_needs_one_turn():
    row, asked = ranked({**RECORD, "lang": "en"}, "en")
    assert row["ranks"] == [3, 1, 3, 2]
    assert len(asked) == 1 and len(asked[0]) == 1 and '"instruction": "Say something"' in asked[0][0]["content"]


def test_second_ranking_uses_the_reverse_order():
    row, asked = ranked(RECORD, rerank_share=1.0)
    assert row["ranks_again"] == row["ranks"] and len(asked) == 4
    shown = [json.loads(messages[0]["content"].split("\n\n")[-1])["responses"] for messages in (asked[0], asked[2])]
    assert list(shown[0].values()) == list(shown[1].values())[::-1]
    assert "ranks_again" not in ranked(RECORD)[0]
    share = sum("ranks_again" in ranked({**RECORD, "input": f"{n}"}, rerank_share=0.25)[0] for n in range(200)) / 200
    assert 0.15 < share < 0.35


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"turn1": lambda shown: Reply(json.dumps(shown), "length", 1, 1)}, "finish_reason: length"),
        ({"turn1": lambda shown: Reply("As an AI language model, no.", "stop", 1, 1)}, "refusal"),
        ({"turn1": lambda shown: {"instruction": "x", "input": "y"}}, "turn 1: keys: missing 'responses'"),
        ({"turn1": lambda shown: {**shown, "responses": {"A": "x"}}}, "turn 1: keys: missing 'responses B'"),
        ({"turn1": lambda shown: {**shown, "responses": {**shown["responses"], "D": "x"}}}, "turn 1: keys: added"),
        ({"turn1": lambda shown: {**shown, "responses": dict.fromkeys("ABC", "")}}, "turn 1: empty: 'responses A'"),
        ({"turn1": lambda shown: {**shown, "instruction": "यो नेपाली हो, अंग्रेजी होइन"}}, "turn 1: script"),
        ({"reply": Reply("A > B", "stop", 1, 1)}, "turn 2: ranking: C is missing"),
        ({"reply": Reply("A > B = C", "length", 1, 1)}, "turn 2: finish_reason: length"),
    ],
)  # fmt: skip
def test_invalid_answer_is_rejected(options, says):
    with pytest.raises(Rejected) as rejected:
        ranked(RECORD, **options)
    assert rejected.value.reason.startswith(says) and rejected.value.reply is not None


def test_failed_second_ranking_keeps_the_first():
    replies = iter(["A > B > C", "nonsense"])

    async def ask(messages, **params):
        if len(messages) == 1:
            return Reply(simulated_answer(messages), "stop", 1, 1)
        return Reply(next(replies), "stop", 1, 1)

    (row,) = asyncio.run(judge(rerank_share=1.0).rank(RECORD, ask))
    assert row["ranks_again"] is None and max(row["ranks"]) == 3


def test_report_by_hand():
    report = RankReport()
    report.add({"responses": ["long one", "b", "cc"], "ranks": [1, 2, 2], "shown": [1, 0, 2], "ranks_again": [1, 2, 3]})
    report.add({"responses": ["x", "yy", "x"], "ranks": [1, 1, 1], "shown": [0, 1], "ranks_again": None})
    report.add({"responses": ["x", "yy"], "ranks": [2, 1], "shown": [1, 0], "ranks_again": [1, 2]})
    assert (report.records, report.pairs, report.ties) == (3, 5, 2)
    assert report.shown == [3, 3, 1] and report.best == [1.5, 1.5, 0.0]
    assert report.expected == pytest.approx([1 / 3 + 1, 1 / 3 + 1, 1 / 3])
    # Untied pairs, in the order shown: b < long, long > cc, yy > x.
    assert (report.first_wins, report.longer_wins, report.longer_pairs) == (2, 3, 3)
    # Second ranking: b < long and long > cc unchanged, b = cc becomes b > cc, yy > x is reversed.
    assert (report.again_records, report.again_pairs, report.again_same, report.again_opposite) == (2, 4, 2, 1)
    assert report.again_failed == 1
    lines = "\n".join(report.lines())
    for part in ("40.0% of them ties", "A 50.0% (44.4%), B 50.0% (44.4%), C 0.0% (33.3%)",
                 "the longer response won 100.0%", "2 records ranked again",
                 "50.0% of the pairs unchanged, 25.0% reversed"):  # fmt: skip
        assert part in lines
    assert "none of them ties" in RankReport().lines()[0]


def test_report_shows_position_bias():
    first, fair = RankReport(), RankReport()
    for n in range(200):
        record = {
            "responses": ["aa", "b", "cccc", "ddd"],
            "shown": show_order(f"{n}", "", ["aa", "b", "cccc", "ddd"], 0),
        }
        first.add({**record, "ranks": [record["shown"].index(k) + 1 for k in range(4)]})
        fair.add({**record, "ranks": [3, 4, 1, 2]})
    assert first.best == [200, 0, 0, 0] and first.first_wins == first.pairs
    assert fair.longer_wins == fair.pairs and 0.4 < fair.first_wins / fair.pairs < 0.6


def sampled(code, count):
    """Return records as launch/sample.py writes them, with the embedded ranks as `kit_ranks`."""
    rows = make_embedded(code, size=48).ranking[:count]
    names = ("instruction", "input", "responses")
    return [
        {"id": f"{n}", **{name: row[name] for name in names}, "finished": [True] * 4, "kit_ranks": row["ranks"]}
        for n, row in enumerate(rows)
    ]


def _rank(url, data, output, *more, lang="ne"):
    argv = ["rank", "--lang", lang, "--data", str(data), "--output", str(output), "--base-url", url]
    return main([*argv, *map(str, more)])


@pytest.mark.parametrize("lang", ["ne", "ar", "en"])
def test_rankings_are_readable_and_put_the_right_answer_first(tmp_path, capsys, lang):
    data, output = tmp_path / "responses.jsonl", tmp_path / "ranking.jsonl"
    rows = sampled(lang, 24)
    rows.insert(2, {**rows[0], "id": "same", "responses": ["a", "a"]})
    write_jsonl(data, rows)
    with serving(faults={"500": 0.1}) as simulator:
        assert _rank(simulator.url, data, output, "--rerank-share", "0.5", lang=lang) == 0
        err, asked = capsys.readouterr().err, simulator.counts.requests
        first = output.read_bytes()
        assert _rank(simulator.url, data, output, "--rerank-share", "0.5", lang=lang) == 0
        assert simulator.counts.requests == asked and output.read_bytes() == first
    rankings = {record.id: record for record in read_rankings(output)}
    by_id = {row["id"]: row for row in rows}
    assert sorted(rankings, key=int) == sorted(set(by_id) - {"same"}, key=int)
    for id, record in rankings.items():
        right = by_id[id]["kit_ranks"].index(1)
        assert record.ranks[right] == 1 and record.ranks.count(1) == 1
    assert [(r["id"], r["reason"]) for r in read_lines(tmp_path / "ranking.jsonl.unranked.jsonl")] == [
        ("same", "all responses are the same")
    ]
    report = read_lines(tmp_path / "ranking.jsonl.report.jsonl")[0]
    assert report["records"] == 24 and report["again_records"] > 4
    assert report["again_same"] == report["again_pairs"]
    assert "ranked again in reverse order: 100.0% of the pairs unchanged" in err


def test_records_with_only_ties_are_separated(tmp_path, capsys):
    data, output = tmp_path / "responses.jsonl", tmp_path / "ranking.jsonl"
    write_jsonl(data, sampled("en", 6))
    with serving(answer=lambda messages, seed: "A = B = C = D") as simulator:
        assert _rank(simulator.url, data, output, lang="en") == 2
    assert output.read_bytes() == b""
    unranked = read_lines(tmp_path / "ranking.jsonl.unranked.jsonl")
    assert {row["reason"] for row in unranked} == {"all responses tie"} and len(unranked) == 6
    err = capsys.readouterr().err
    assert "100.0% of them ties" in err
    assert err.splitlines()[-1] == f"error: no rows in {output}: none of 6 records was rejected, but none was kept"


def test_equal_responses_send_no_requests(tmp_path):
    data, output = tmp_path / "responses.jsonl", tmp_path / "ranking.jsonl"
    write_jsonl(data, [{"instruction": "a", "responses": ["x", "x"]}])
    with serving() as simulator:
        assert _rank(simulator.url, data, output) == 2
        assert simulator.counts.requests == 0
    assert output.read_bytes() == b""
    assert len(read_lines(tmp_path / "ranking.jsonl.unranked.jsonl")) == 1


def test_invalid_ranking_is_quarantined(tmp_path):
    data, output = tmp_path / "responses.jsonl", tmp_path / "ranking.jsonl"
    write_jsonl(data, sampled("en", 3))
    with serving(answer=lambda messages, seed: "A > B > C") as simulator:
        assert _rank(simulator.url, data, output, lang="en") == 2
    reasons = {row["reason"] for row in read_lines(tmp_path / "ranking.jsonl.quarantine.jsonl")}
    assert reasons == {"turn 2: ranking: D is missing"} and output.read_bytes() == b""


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        ({"instruction": "a"}, [], "r.jsonl:1: field 'responses' is None: it must be a list of strings"),
        ({"instruction": "a", "responses": ["x", 3]}, [], "r.jsonl:1: field 'responses' is ['x', 3]"),
        ({"instruction": "a", "responses": ["x"]}, [], "r.jsonl:1: field 'responses' has 1: give 2 to 26"),
        ({"responses": ["x", "y"]}, [], "r.jsonl:1: field 'instruction' is missing"),
        ({"instruction": "a", "responses": ["x", "y"]}, ["--rerank-share", "2"], "--rerank-share 2.0 must be from 0"),
        ({"instruction": "a", "responses": ["x", "y"]}, ["--translate-template", "t"], "--translate-template t lacks"),
        ({"instruction": "a", "responses": ["x", "y"]}, ["--report", "r.jsonl"], "--report r.jsonl is also another"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line_before_any_request(tmp_path, monkeypatch, capsys, row, flags, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl("r.jsonl", [row])
    (tmp_path / "t").write_text("$record")
    assert main(["rank", "--lang", "ne", "--data", "r.jsonl", "--output", "o.jsonl", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "t"]


def test_dry_run_counts_both_turns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datagen.rank._fault_of_translation", lambda *args: "odd")
    write_jsonl(tmp_path / "r.jsonl", sampled("ne", 5))
    assert (
        _rank("http://127.0.0.1:9/v1", tmp_path / "r.jsonl", tmp_path / "o.jsonl", "--dry-run", "--rerank-share", 0)
        == 0
    )
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["ne", "5", "0", "10"]
