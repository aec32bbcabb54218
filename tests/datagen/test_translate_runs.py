"""`translate` as a command: records set aside, restarts, exit status, and errors before the first request."""

from __future__ import annotations

import errno
import json
import os

import pytest

from datagen.__main__ import main
from datagen.kits import load_kit
from datagen.run.prompt_templates import read_template
from datagen.simulate.answers import simulated_answer
from datagen.text import language_faults
from datagen.translate import read_instructions
from datagen.translation.splitting import split_text
from datagen.translation.texts import TEMPLATE_NAMES
from engine.base.errors import UserError
from engine.base.records import read_instructions as read_checked
from engine.base.records import write_jsonl
from tests.datagen.api.api_helpers import read_lines
from tests.datagen.serving import serving
from tests.evaluation import made_up


def _translate(url, data, output, *more, lang="ne"):
    argv = ["translate", "--lang", lang, "--data", str(data), "--output", str(output), "--base-url", url]
    return main([*argv, *map(str, more)])


def records(count):
    texts = load_kit("en").texts
    rows = [{"instruction": f"Say in other words: {texts[n % 40]} {n}", "input": "", "output": f"{texts[-n % 40]} {n}"}
            for n in range(count)]  # fmt: skip
    return [{**row, "id": f"r{n}", "source": "made up"} for n, row in enumerate(rows)]


def test_run_sets_records_aside_and_a_restart_sends_no_requests(tmp_path, capsys):
    data, output = tmp_path / "en.jsonl", tmp_path / "ne.jsonl"
    long_text = "The cat that sat on the warm mat by the old door was asleep the whole day long."
    rows = records(30)
    rows.insert(
        3, {"id": "g", "instruction": "Correct the grammar: he go home.", "input": "", "output": "He goes home."}
    )
    rows.insert(9, {"id": "b", "instruction": "Say it again.", "input": long_text, "output": "It slept."})
    write_jsonl(data, rows)
    write_jsonl(tmp_path / "bench.jsonl", [{"question": f"Once: {long_text}"}])
    with serving(faults={"500": 0.2}) as simulator:
        assert _translate(simulator.url, data, output, "--decontaminate", tmp_path / "bench.jsonl") == 0
        err = capsys.readouterr().err
        asked_before, first = simulator.counts.requests, output.read_bytes()
        assert _translate(simulator.url, data, output, "--decontaminate", tmp_path / "bench.jsonl") == 0
        assert simulator.counts.requests == asked_before and output.read_bytes() == first
        assert _translate(simulator.url, data, tmp_path / "all.jsonl", "--language-tasks", "translate") == 0
    for line in ("30  to translate", "1  set aside: about grammar", "1  set aside: overlaps a benchmark"):
        assert f" {line}" in err
    assert [(row["id"], row["reason"]) for row in read_lines(tmp_path / "ne.jsonl.aside.jsonl")] == [
        ("g", "grammar"),
        ("b", "overlaps a benchmark"),
    ]
    translated = read_lines(output)
    assert [row["id"] for row in translated] == [f"r{n}" for n in range(30)]
    assert {(row["lang"], row["source"]) for row in translated} == {("ne", "made up")}
    assert len(list(read_checked(output))) == 30
    assert len(read_lines(tmp_path / "all.jsonl")) == 32


def too_short_for_some(messages, seed=0):
    """Answer like the simulator, but with an output of one number for the records 7, 14 and 21."""
    answer = json.loads(simulated_answer(messages))
    if answer["output"].split()[-1] in ("7", "14", "21"):
        answer["output"] = answer["output"].split()[-1]
    return json.dumps(answer)


def test_wrong_length_is_quarantined_and_retried_on_request(tmp_path, capsys):
    """Lengths are checked in record order, so a restart makes the same decisions."""
    data, output, quarantine = (tmp_path / name for name in ("en.jsonl", "vi.jsonl", "vi.jsonl.quarantine.jsonl"))
    long_tail = "He told me about it, and I told her, and she told everybody in the village where we live."
    rows = [{**row, "output": f"{long_tail} {long_tail} {n}"} for n, row in enumerate(records(80))]
    write_jsonl(data, rows)
    with serving(answer=too_short_for_some) as simulator:
        assert _translate(simulator.url, data, output, "--concurrency", "3", lang="vi") == 0
        first = [row["index"] for row in read_lines(quarantine)]
        reasons = {row["reason"].split(":")[0] for row in read_lines(quarantine)}
        asked_before = simulator.counts.requests
        assert _translate(simulator.url, data, output, lang="vi") == 0
        assert [row["index"] for row in read_lines(quarantine)] == first and simulator.counts.requests == asked_before
    assert first == [7, 14, 21] and reasons == {"length"}
    with serving() as simulator:
        assert _translate(simulator.url, data, output, "--retry-quarantined", lang="vi") == 0
        assert simulator.counts.requests == 3
    assert not quarantine.exists()
    assert [row["id"] for row in read_lines(output)] == [row["id"] for row in rows]


def test_run_without_rows_fails(tmp_path, capsys):
    """No server listens; then all answers are rejected; then all records are set aside."""
    data, output = tmp_path / "en.jsonl", tmp_path / "ne.jsonl"
    write_jsonl(data, records(2))
    with serving() as simulator:
        gone = simulator.url
    assert _translate(gone, data, output, "--max-attempts", "1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: no rows in {output}: 2 of 2 records were rejected, the first: gave up after 1")
    assert last.endswith("run again with --retry-quarantined")
    with serving(answer=lambda messages, seed: "no JSON") as simulator:
        assert _translate(simulator.url, data, output, "--retry-quarantined") == 2
    assert "2 of 2 records were rejected, the first: JSON: " in capsys.readouterr().err.splitlines()[-1]
    write_jsonl(data, [{"instruction": "Correct the grammar of this sentence.", "output": "x"}])
    assert _translate(gone, data, output) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: no rows in {output}: there were no records to process"
    with serving() as simulator:
        write_jsonl(data, records(2))
        assert _translate(simulator.url, data, output, "--retry-quarantined") == 0


@pytest.mark.parametrize("verb", ["translate", "benchmark"])
def test_full_temporary_folder_fails_before_any_request(tmp_path, monkeypatch, capsys, verb):
    """The language identification model is unpacked there."""
    data = tmp_path / "m_arc" / "en_test.json"
    data.parent.mkdir()
    data.write_text(json.dumps(records(2) if verb == "translate" else [made_up.arc(n) for n in range(2)]))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    language_faults._identifier.cache_clear()
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with serving() as simulator:
        argv = [verb, "--lang", "fr", "--data", data, "--output", tmp_path / "out.jsonl", "--base-url", simulator.url]
        assert main([*map(str, argv)]) == 2
        assert simulator.counts.requests == 0
    err = capsys.readouterr().err.splitlines()[-1]
    assert "cannot unpack its model (No space left on device): make room in the temporary folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["m_arc"]


def test_dry_run_over_several_languages(tmp_path, capsys):
    write_jsonl(tmp_path / "en.jsonl", records(10))
    argv = [
        "translate",
        "--lang",
        "ne",
        "vi",
        "--data",
        str(tmp_path / "en.jsonl"),
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    assert main([*argv, "--dry-run"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:4] for row in table] == [["ne", "10", "0", "10"], ["vi", "10", "0", "10"], ["total", "20", "0", "20"]]
    assert [path.name for path in tmp_path.iterdir()] == ["en.jsonl"]
    assert main(argv) == 2
    assert "--lang names 2 languages" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["translate", "benchmark"])
def test_dry_run_skips_answer_checks(tmp_path, monkeypatch, capsys, verb):
    """Checks took nine tenths of the time, and a failed check skipped the requests for later parts of a record."""
    data = tmp_path / "m_arc" / "en_test.json"
    data.parent.mkdir()
    long = "\n\n".join(f"The year {n} was warm, and we walked along the river." for n in range(1901, 1951))
    data.write_text(json.dumps([{"instruction": long}] if verb == "translate" else [made_up.arc(1)]))
    monkeypatch.setattr("datagen.translation.texts.fault_of_translation", lambda *args: pytest.fail("a check was run"))
    argv = [verb, "--lang", "fr", "--data", data, "--output", tmp_path / "out.jsonl", "--dry-run"]
    assert main([*map(str, argv), *(["--split-above", "50"] if verb == "translate" else [])]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["fr", "1", "0"] and int(row[3]) == (
        len(split_text(long, 50).texts) if verb == "translate" else 1
    )


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"input": ""}], [], "en.jsonl:1: field 'instruction' is missing"),
        ([{"instruction": "a"}, {"instruction": " "}], [], "en.jsonl:2: field 'instruction' is empty"),
        ([{"instruction": "a", "output": 3}], [], "en.jsonl:1: field 'output' is 3"),
        ([{"instruction": "a", "id": [1]}], [], "en.jsonl:1: field 'id' is [1]"),
        ([{"instruction": "a"}, {"instruction": "b", "tags": ["\ud83d"]}], [], "en.jsonl:2: field 'tags' holds half a"),
        ([{"instruction": "a", "id": 2}, {"instruction": "b"}], [], "en.jsonl:2: field 'id' is '2', as in en.jsonl:1"),
        ([{"instruction": "a"}], ["--lang", "en"], "--lang en: the records are in English already"),
        ([{"instruction": "a"}], ["--lang", "nep"], "did you mean 'ne'"),
        ([{"instruction": "a"}], ["--output", "en.jsonl", "--journal", "j"], "--output en.jsonl exists"),
        ([{"instruction": "a"}], ["--split-above", "0"], "--split-above 0 must be 1 or more"),
        ([{"instruction": "a"}], ["--template", "t.txt"], "--template t.txt lacks $language"),
        ([{"instruction": "a"}], ["--decontaminate", "none.jsonl"], "none.jsonl: there is no such file"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line_before_any_request(tmp_path, monkeypatch, capsys, rows, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "t.txt").write_text("$record")
    assert main(["translate", "--lang", "ne", "--data", "en.jsonl", "--output", "o.jsonl", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["en.jsonl", "t.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$language", r"lacks \$record"),
        ("$language $record $x", r"has \$x: the names are"),
        ("$language $record 5$", "has a"),
    ],
)
def test_invalid_template_is_refused(tmp_path, text, message):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UserError, match=message):
        read_template(tmp_path / "t", **TEMPLATE_NAMES)
    with pytest.raises(UserError, match="--flag .*: No such file"):
        read_template(tmp_path / "none", **TEMPLATE_NAMES, flag="--flag")


def test_default_ids_are_record_numbers(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "a"}, {"instruction": "b", "id": 9, "more": 1}])
    assert read_instructions([str(tmp_path / "a.jsonl")]) == [
        {"id": "1", "instruction": "a", "input": "", "output": ""},
        {"id": "9", "instruction": "b", "input": "", "output": "", "more": 1},
    ]
