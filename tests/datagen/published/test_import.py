"""`python -m datagen import`: made-up entries in the published formats become records that the engine reads."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from datagen.__main__ import main
from datagen.published.entries import is_named
from engine.base.languages import LANGUAGES, get_language
from engine.base.records import read_instructions, read_rankings

ENGLISH, NEPALI = "Good morning, how are you today?", "शुभ प्रभात, आज तपाईंलाई कस्तो छ? मलाई सन्चै छ।"


def write(path, rows):
    """Write rows in the form that the name says."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = json.dumps(rows, ensure_ascii=False, indent=1) if path.suffix == ".json" else lines
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def imported(tmp_path, capsys):
    """Return a function that imports rows and gives (instructions, rankings, {line of the table: count})."""

    def run(form, rows, lang="ne", suffix=".jsonl", files=("output", "rankings")):
        path, flags = write(tmp_path / f"data{suffix}", rows), []
        for name in files:
            flags += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
        status = main(["import", form, str(path), "--lang", lang, *flags])
        said = capsys.readouterr()
        assert status == 0, said.err
        table = dict(reversed(re.fullmatch(r" +([\d,]+)  (.*)", line).groups()) for line in said.out.splitlines())
        read = {"output": read_instructions, "rankings": read_rankings}
        found = {name: tmp_path / f"{name}.jsonl" for name in read}
        records = [list(read[name](file)) if file.exists() else [] for name, file in found.items()]
        return *records, {what.split(" in /")[0]: int(count) for what, count in table.items()}

    return run


def aya(inputs, targets, language="Nepali (macrolanguage)", code="npi"):
    return {"inputs": inputs, "targets": targets, "language": language, "language_code": code}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_aya(imported, suffix):
    rows = [
        aya("नेपालको राजधानी?", "काठमाडौं"), aya("Capital?", "Paris", "English", "eng"), aya("x", " "),
        aya("नेपालको राजधानी?", "काठमाडौं"), aya("", "x"),
    ]  # fmt: skip
    instructions, rankings, table = imported("aya", rows, suffix=suffix)
    assert [(r.id, r.instruction, r.input, r.output) for r in instructions] == [
        ("aya/1", "नेपालको राजधानी?", "", "काठमाडौं")
    ]
    assert not rankings
    assert table == {
        "instructions and conversations": 1,
        "rankings": 0,
        "left out: other language": 1,
        "left out: empty answer": 1,
        "left out: the same as an earlier one": 1,
        "left out: empty prompt": 1,
    }


def message(id, parent, text, rank=None, lang="en", **more):
    role = "prompter" if id[0] == "q" else "assistant"
    return {"message_id": id, "parent_id": parent, "text": text, "role": role, "lang": lang, "rank": rank, **more}


FLAT = [
    message("q1", None, "How are you?"),
    message("a1", "q1", "Bad.", 2),
    message("a2", "q1", "Fine.", 0),
    message("a3", "q1", "Gut.", 1, "de"),
    message("a4", "q1", "Rude.", 3, deleted=True),
    message("q2", "a2", "Why?"),  # without an answer
    message("q3", "a2", "And now?"),
    message("a5", "q3", "Still fine."),
    message("q4", "a1", "Why bad?"),
    message("a6", "q4", "Rain.", 0),
    message("a7", "q4", "Snow.", 1.0),
    message("q9", "gone", "Hello?"),
    message("q5", None, "Wie geht's?", lang="de"),
    message("a8", "q5", "Gut.", lang="de"),
]


def tree(rows, root):
    """Nest the flat messages below one."""
    return {**root, "replies": [tree(rows, row) for row in rows if row["parent_id"] == root["message_id"]]}


def test_oasst_trees_and_messages_give_the_same(imported):
    roots = [row for row in FLAT if row["parent_id"] is None]
    trees = [{"message_tree_id": row["message_id"], "prompt": tree(FLAT, row)} for row in roots]
    results = [imported("oasst", rows, "en", suffix) for rows, suffix in ((FLAT, ".jsonl"), (trees, ".jsonl.gz"))]
    for instructions, rankings, table in results:
        (talk,) = instructions
        said = [*(turn.content for turn in talk.history), talk.instruction, talk.output]
        assert said == ["How are you?", "Fine.", "And now?", "Still fine."]
        ranked = {r.id: (dict(zip(r.responses, r.ranks)), len(r.history)) for r in rankings}
        assert ranked == {"q1": ({"Fine.": 1, "Bad.": 2}, 0), "q4": ({"Rain.": 1, "Snow.": 2}, 2)}
        assert table["left out: other language"] == 3
        assert table["left out: message deleted or refused by reviewers"] == 1
    assert results[0][2]["left out: replies to a message that is not in the file"] == 1


def test_oasst_without_a_file_for_rankings_counts_them(imported):
    instructions, rankings, table = imported("oasst", FLAT, "en", files=("output",))
    assert (len(instructions), rankings) == (1, [])
    assert table["left out: rankings without a file: give --rankings"] == 2


def test_okapi_instructions_and_pairs(imported):
    rows = [
        {"instruction": "भन", "input": "", "output": NEPALI},
        {"instruction": "भन", "input": "x", "prefered_output": NEPALI, "rejected_output": "होइन"},
        {"instruction": "भन", "input": "y", "prefered_output": "हो", "rejected_output": "हो"},
        {"instruction": "भन", "input": "z", "prefered_output": ENGLISH, "rejected_output": "No"},
        {"id": "k", "instruction": "भन", "input": "", "responses": ["क", "ख", "ग"], "ranks": [4, 2, 4]},
    ]
    instructions, rankings, table = imported("okapi", rows, suffix=".json")
    assert [(r.id, r.output) for r in instructions] == [("okapi/1", NEPALI)]
    assert [(r.id, r.responses, r.ranks) for r in rankings] == [
        ("okapi/2", (NEPALI, "होइन"), (1, 2)),
        ("k", ("क", "ख", "ग"), (2, 1, 2)),
    ]
    assert table["left out: answers of equal rank or text"] == table["left out: other language"] == 1


def test_alpaca(imported):
    rows = [
        {"instruction": "Greet", "input": "", "output": ENGLISH}, {"instruction": "भन", "output": NEPALI},
        {"instruction": "भन", "output": ""}, {"id": "alpaca/2", "instruction": "अर्को", "input": "", "output": NEPALI},
    ]  # fmt: skip
    instructions, _, table = imported("alpaca", rows)
    assert [record.id for record in instructions] == ["alpaca/2", "alpaca/2#2"]
    assert table["left out: other language"] == table["left out: empty answer"] == 1


def shared(*said, **more):
    return {"conversations": [{"from": role, "value": text} for role, text in said], **more}


def test_sharegpt(imported):
    rows = [
        shared(("system", "Be kind."), ("human", "Hi"), ("gpt", ENGLISH), ("human", "Bye"), id="s"),
        shared(("gpt", ENGLISH), ("human", "Hi"), ("gpt", ENGLISH)),
        shared(("human", "Hi"), ("human", "Hi?"), ("gpt", ENGLISH)),
        shared(("human", "Hi")),
        shared(("human", "के छ?"), ("gpt", NEPALI)),
        shared(("user", "Hi"), ("chatgpt", "Hi."), ("user", "How?"), ("chatgpt", ENGLISH)),
    ]
    instructions, _, table = imported("sharegpt", rows, "en")
    assert [(r.id, len(r.history), r.instruction, r.output) for r in instructions] == [
        ("s", 1, "Hi", ENGLISH),
        ("sharegpt/6", 2, "How?", ENGLISH),
    ]
    assert table["left out: begins with an answer"] == table["left out: roles do not take turns"] == 1
    assert table["left out: no question with an answer"] == table["left out: other language"] == 1


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        ("aya", {"inputs": "x", "targets": "y"}, "field 'language' is missing"),
        ("aya", {"inputs": 1, "targets": "y", "language": "ne"}, "field 'inputs' is 1"),
        ("oasst", {"text": "x"}, "give trees ('prompt') or messages ('message_id')"),
        ("oasst", message("q", None, "x") | {"role": "user"}, "give prompter or assistant"),
        ("oasst", message("q", None, "x", "first"), "field 'rank' is 'first'"),
        ("oasst", {"prompt": message("q", None, "x", replies=[1])}, "must be a list of messages"),
        ("okapi", {"instruction": "x"}, "'prefered_output' and 'rejected_output'"),
        ("okapi", {"instruction": "x", "responses": ["a", "b"], "ranks": [1]}, "must be 2 whole numbers"),
        ("alpaca", {"instruction": "x", "input": "", "output": None}, "field 'output' is None"),
        ("sharegpt", {"items": []}, "field 'conversations' is missing"),
        ("sharegpt", shared(("judge", "x")), "'conversations[0]'"),
        ("alpaca", {"instruction": "\ud800", "output": "x"}, "half a surrogate pair"),
    ],
)
def test_an_entry_in_another_format_is_one_line_with_its_number(tmp_path, capsys, form, row, words):
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    assert main(["import", form, str(path), "--lang", "en", "--output", str(tmp_path / "o.jsonl")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}:2: ")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_nothing_in_the_language_or_no_file_is_an_error(tmp_path, capsys):
    path = write(tmp_path / "data.jsonl", [{"instruction": "Greet", "output": ENGLISH}])
    assert main(["import", "alpaca", str(path), "--lang", "ne"]) == 2
    assert "give --output, --rankings or both" in capsys.readouterr().err
    assert main(["import", "alpaca", str(path), "--lang", "ne", "--output", str(tmp_path / "o.jsonl")]) == 2
    assert "gives no records in Nepali" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_names_of_languages():
    nepali, arabic, chinese = get_language("ne"), get_language("ar"), get_language("zh")
    assert all(is_named(name, nepali) for name in ("ne", "NE", "npi", "Nepali", "ne-NP", "npi_Deva"))
    assert not any(is_named(name, nepali) for name in ("new", "nl", "Newari", "Hindi", ""))
    assert is_named("Standard Arabic", arabic)
    assert not is_named("Egyptian Arabic", arabic)
    assert is_named("Simplified Chinese", chinese)
    assert is_named("zh-CN", chinese)
    for language in LANGUAGES.values():
        assert is_named(language.code, language)
        assert is_named(language.name, language)
        assert sum(is_named(language.name, other) for other in LANGUAGES.values()) == 1


def test_real_files(real_data, tmp_path, capsys):
    """Okapi's Chinese Alpaca and rankings made from its benchmarks: most are kept, and all that is kept is read."""
    output, rankings = tmp_path / "o.jsonl", tmp_path / "r.jsonl"
    flags = ["--output", str(output), "--rankings", str(rankings)]
    assert main(["import", "alpaca", str(real_data / "alpaca_zh.jsonl.gz"), "--lang", "zh", *flags]) == 0
    assert sum(1 for _ in read_instructions(output)) > 13_000
    assert main(["import", "okapi", str(real_data / "okapi_ne" / "ranking.jsonl"), "--lang", "ne", *flags]) == 0
    assert sum(1 for _ in read_rankings(rankings)) > 1300
