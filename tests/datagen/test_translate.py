"""`translate`: what is sent and put together, each check with its reason, records set aside, restarts, mistakes."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest

from datagen import language_faults
from datagen.__main__ import main
from datagen.chat import Rejected, Reply
from datagen.decontaminate import Benchmarks
from datagen.kits import load_kit
from datagen.length_ratios import LengthRatios
from datagen.prompt_templates import read_template
from datagen.simulate_answers import simulated_answer
from datagen.simulate_translation import recognise
from datagen.splitting import split_text
from datagen.translate import TEMPLATE_FILE, make_review, make_work, read_instructions
from datagen.translation import TEMPLATE_NAMES, Translator, check_lengths, load_checks
from engine.errors import UserError
from engine.languages import LANGUAGES
from engine.records import read_instructions as read_checked
from engine.records import write_jsonl
from tests.datagen.api_helpers import read_lines
from tests.datagen.serving import serving
from tests.evaluation import made_up

TEMPLATE = read_template(TEMPLATE_FILE, **TEMPLATE_NAMES)
RECORD = {
    "instruction": "Explain how many legs 3 spiders have, and why that is so, in simple words.",
    "input": "",
    "output": "Spiders have 8 legs each, so that is 24. Run `legs * 3` or see https://example.org/legs for {name}.",
}
FRENCH = {
    "instruction": "Explique combien de pattes ont 3 araignées, et pourquoi il en est ainsi, avec des mots simples.",
    "output": "Les araignées ont 8 pattes, donc 24. Lance `legs * 3` ou vois https://example.org/legs pour {name}.",
}


def asked(texts, answer, lang="fr", limit=500, **options):
    """The translation by a model that answers so: a text, an object, a Reply, or a function of the request's object."""
    requests = []

    async def ask(messages, **params):
        assert params == {"temperature": 0.3}
        prompt = messages[-1]["content"]
        requests.append(json.loads(prompt[prompt.rindex("\n{") :]))
        reply = answer(requests[-1]) if callable(answer) else answer
        reply = json.dumps(reply) if isinstance(reply, dict) else reply
        return reply if isinstance(reply, Reply) else Reply(reply, "stop", 1, 1)

    translator = Translator(LANGUAGES[lang], TEMPLATE, limit)
    return asyncio.run(translator.translate(texts, ask, **options)), requests


def test_one_object_with_the_texts_that_are_not_empty():
    translated, requests = asked(RECORD, FRENCH)
    assert translated == {**FRENCH, "input": ""}
    assert list(translated) == list(RECORD)
    assert requests == [{"instruction": RECORD["instruction"], "output": RECORD["output"]}]
    assert asked({"a": "12 + 3", "b": "?"}, "not asked") == ({"a": "12 + 3", "b": "?"}, [])


def test_the_prompt_names_the_language_and_shows_no_placeholder():
    prompt = TEMPLATE.substitute(language="French", native_name="Français", note="", record="{}")
    assert "from English into French (Français)" in prompt and "$" not in prompt


@pytest.mark.parametrize("fenced", [False, True])
def test_a_code_fence_around_the_object_is_taken_off(fenced):
    answer = json.dumps(FRENCH)
    assert asked(RECORD, f"```json\n{answer}\n```" if fenced else answer)[0]["output"] == FRENCH["output"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Reply(json.dumps(FRENCH), "length", 1, 1), "finish_reason: length; raise --max-tokens"),
        (Reply("", "content_filter", 1, 1), "finish_reason: content_filter"),
        ("I'm sorry, but I can't help with that.", "refusal: "),
        ("Voici: " + json.dumps(FRENCH), "JSON: "),
        (json.dumps(FRENCH)[:-9], "JSON: "),
        ("[]", "JSON: a JSON object was asked for, not list"),
        (json.dumps({**FRENCH, "output": FRENCH["output"] + " \ud83d"}), "JSON: a text holds half a surrogate pair"),
        ('{"instruction": "a", "instruction": "b"}', "JSON: field 'instruction' is given twice"),
        ({"instruction": FRENCH["instruction"]}, "keys: missing 'output'"),
        (Reply(json.dumps(FRENCH), "MAX_TOKENS", 1, 1), "finish_reason: MAX_TOKENS; raise --max-tokens"),
        (Reply(json.dumps(FRENCH), "SAFETY", 1, 1), "finish_reason: SAFETY"),
        ({**FRENCH, "input": "x"}, "keys: added 'input'"),
        ({**FRENCH, "note": 3}, "keys: added 'note'"),
        ({**FRENCH, "output": 24}, "keys: 'output' is no text"),
        ({**FRENCH, "output": " "}, "empty: 'output' is empty in the answer"),
        ({**FRENCH, "output": FRENCH["output"].replace("24", "25")}, "numbers: lost 24 (in output)"),
        ({**FRENCH, "output": FRENCH["output"].replace("`legs * 3`", "`pattes * 3`")}, "inline code: lost"),
        ({**FRENCH, "output": FRENCH["output"].replace("example.org", "example.fr")}, "URLs: lost"),
        ({**FRENCH, "output": FRENCH["output"].replace("{name}", "{nom}")}, "placeholders: lost '{name}'"),
        ({**FRENCH, "instruction": RECORD["instruction"]}, "left in English (in instruction)"),
        ({**FRENCH, "instruction": "Объясни простыми словами, сколько ног у 3 пауков."}, "script: 0% of the letters"),
        ({**FRENCH, "instruction": "Spiega quante zampe hanno 3 ragni, e perché è così, con parole molto semplici."},
         "language: looks like Italian (in instruction)"),
        ({**FRENCH, "instruction": "Je suis désolé, mais je ne peux pas compter 3 araignées."}, "refusal: "),
    ],
)  # fmt: skip
def test_each_check_gives_its_reason(answer, reason):
    with pytest.raises(Rejected) as rejected:
        asked(RECORD, answer)
    assert rejected.value.reason.startswith(reason)
    assert rejected.value.reply is not None


@pytest.mark.parametrize("finish_reason", ["eos_token", "eos", "end_turn", "STOP", "full moon"])
def test_any_spelling_of_a_whole_answer_is_taken(finish_reason):
    assert asked(RECORD, Reply(json.dumps(FRENCH), finish_reason, 1, 1))[0]["output"] == FRENCH["output"]


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_a_key_that_holds_nothing_and_was_not_asked_for_is_no_fault(nothing):
    texts = {name: text for name, text in RECORD.items() if text}
    assert asked(texts, {**FRENCH, "input": nothing})[0] == asked(texts, FRENCH)[0]


def test_a_translation_that_says_what_its_source_says_is_no_refusal():
    texts = {"output": "I cannot translate this text, said the monk, and went to bed."}
    answer = {"output": "No puedo traducir este texto, dijo el monje, y se fue a la cama."}
    assert asked(texts, answer, lang="es")[0] == answer


def test_code_without_a_fence_may_change_in_comments_only():
    code = {"output": "def add(a, b):\n    # add both\n    return a + b"}
    assert asked(code, {"output": code["output"].replace("add both", "ajoute")})[0]["output"].endswith("return a + b")
    with pytest.raises(Rejected, match="code: changed beyond its comments"):
        asked(code, {"output": code["output"].replace("add(", "ajoute(")})


def test_long_records_are_split_and_joined_exactly():
    paragraphs = [f"Paragraph {n} says something about cats and dogs." for n in range(9)]
    text = "\n" + " \n\n\n".join(paragraphs) + "\n"
    record = {"instruction": "Copy this text about pets.", "input": "", "output": text}

    def shout(request):
        return {name: f"  {value.upper()}\n" for name, value in request.items()}

    translated, requests = asked(record, shout, limit=30, keeps_english=True)
    assert translated == {"instruction": "COPY THIS TEXT ABOUT PETS.", "input": "", "output": text.upper()}
    assert len(requests) == 6 and list(requests[0]) == ["instruction"]
    assert all(len("".join(request.values())) <= 4 * 32 for request in requests)
    assert asked(record, shout, limit=3000, keeps_english=True) == (
        translated,
        [{k: v.strip() for k, v in record.items() if v}],
    )


def test_tasks_about_english_may_keep_english():
    record = {
        "instruction": "Correct this sentence.",
        "output": "She goes to the school that is by the river every day.",
    }
    answer = {"instruction": "Corrige cette phrase.", "output": record["output"]}
    assert asked(record, answer, keeps_english=True)[0] == answer
    with pytest.raises(Rejected, match="left in English"):
        asked(record, answer)


def test_lengths_are_learned_from_what_passes():
    ratios = LengthRatios()
    for n in range(100):
        check_lengths(ratios, {"a": "word " * (20 + n)}, {"a": "mot " * (20 + n)})
    assert ratios.count == 100
    with pytest.raises(Rejected, match=r"length: .* \(in a\)"):
        check_lengths(ratios, {"a": "word " * 50}, {"a": "mot " * 8})
    code = "x = [\n" + "    1,\n" * 40 + "];"
    check_lengths(ratios, {"a": f"Here:\n```\n{code}\n```"}, {"a": f"Ici :\n```\n{code}\n```"})
    assert ratios.count == 101


def test_a_translation_that_overlaps_a_benchmark(tmp_path):
    words = "un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze"
    write_jsonl(tmp_path / "b.jsonl", [{"question": words}])
    review = make_review(LengthRatios(), Benchmarks([str(tmp_path / "b.jsonl")]))
    record = {"instruction": "Count to fourteen in words, please, my dear friend.", "input": "", "output": ""}
    review(record, [{**record, "instruction": "Compte jusqu'à quatorze en toutes lettres."}])
    with pytest.raises(Rejected, match="overlaps a benchmark: .*b.jsonl:1 question"):
        review(record, [{**record, "instruction": words}])


def test_the_work_keeps_every_other_field():
    async def ask(messages, **params):
        return Reply(simulated_answer(messages), "stop", 1, 1)

    record = {"id": "7", "instruction": "Add 3 and 4.", "input": "", "output": "7", "lang": "ne", "source": "alpaca"}
    translator = Translator(LANGUAGES["ne"], TEMPLATE)
    (row,) = asyncio.run(make_work({"ne": translator})(record, ask))
    assert {**row, "instruction": "", "output": ""} == {**record, "instruction": "", "output": ""}
    assert recognise(load_kit("ne"), row["instruction"], "").output == row["output"] == "७"


def _translate(url, data, output, *more, lang="ne"):
    argv = ["translate", "--lang", lang, "--data", str(data), "--output", str(output), "--base-url", url]
    return main([*argv, *map(str, more)])


def records(count):
    texts = load_kit("en").texts
    rows = [{"instruction": f"Say in other words: {texts[n % 40]} {n}", "input": "", "output": f"{texts[-n % 40]} {n}"}
            for n in range(count)]  # fmt: skip
    return [{**row, "id": f"r{n}", "source": "made up"} for n, row in enumerate(rows)]


def test_a_run_sets_aside_repeats_nothing_and_can_be_read(tmp_path, capsys):
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
        told = capsys.readouterr().err
        asked_before, first = simulator.counts.requests, output.read_bytes()
        assert _translate(simulator.url, data, output, "--decontaminate", tmp_path / "bench.jsonl") == 0
        assert simulator.counts.requests == asked_before and output.read_bytes() == first
        assert _translate(simulator.url, data, tmp_path / "all.jsonl", "--language-tasks", "translate") == 0
    for line in ("30  to translate", "1  set aside: about grammar", "1  set aside: overlaps a benchmark"):
        assert f" {line}" in told
    assert [(row["id"], row["reason"]) for row in read_lines(tmp_path / "ne.jsonl.aside.jsonl")] == [
        ("g", "grammar"),
        ("b", "overlaps a benchmark"),
    ]
    translated = read_lines(output)
    assert [row["id"] for row in translated] == [f"r{n}" for n in range(30)]
    assert {(row["lang"], row["source"]) for row in translated} == {("ne", "made up")}
    assert len(list(read_checked(output))) == 30
    assert len(read_lines(tmp_path / "all.jsonl")) == 32


def wrong_now_and_then(messages, seed=0):
    """Of the texts that hold a number divisible by 7, the first answer is too short, the second no JSON."""
    answer = json.loads(simulated_answer(messages))
    if answer["output"].split()[-1] in ("7", "14", "21"):
        answer["output"] = answer["output"].split()[-1]
    return json.dumps(answer)


def test_a_wrong_length_is_quarantined_and_asked_again_on_request(tmp_path, capsys):
    """In the order of the records, so that a restart decides as the first run did."""
    data, output, quarantine = (tmp_path / name for name in ("en.jsonl", "vi.jsonl", "vi.jsonl.quarantine.jsonl"))
    long_tail = "He told me about it, and I told her, and she told everybody in the village where we live."
    rows = [{**row, "output": f"{long_tail} {long_tail} {n}"} for n, row in enumerate(records(80))]
    write_jsonl(data, rows)
    with serving(answer=wrong_now_and_then) as simulator:
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


def test_where_not_one_row_came_out_the_status_says_so(tmp_path, capsys):
    """Nobody listens; every answer is rejected; every record is set aside."""
    data, output = tmp_path / "en.jsonl", tmp_path / "ne.jsonl"
    write_jsonl(data, records(2))
    with serving() as simulator:
        gone = simulator.url
    assert _translate(gone, data, output, "--max-attempts", "1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: not one row in {output}: 2 of 2 records were rejected, the first: gave up after 1")
    assert last.endswith("run again with --retry-quarantined")
    with serving(answer=lambda messages, seed: "no JSON") as simulator:
        assert _translate(simulator.url, data, output, "--retry-quarantined") == 2
    assert "2 of 2 records were rejected, the first: JSON: " in capsys.readouterr().err.splitlines()[-1]
    write_jsonl(data, [{"instruction": "Correct the grammar of this sentence.", "output": "x"}])
    assert _translate(gone, data, output) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: not one row in {output}: there was no record to work on"
    with serving() as simulator:
        write_jsonl(data, records(2))
        assert _translate(simulator.url, data, output, "--retry-quarantined") == 0


@pytest.mark.parametrize("verb", ["translate", "benchmark"])
def test_a_full_temporary_folder_is_told_before_anything_is_asked(tmp_path, monkeypatch, capsys, verb):
    """The model that tells languages apart is unpacked there."""
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
    told = capsys.readouterr().err.splitlines()[-1]
    assert "cannot unpack its model (No space left on device): make room in the temporary folder" in told
    assert [path.name for path in tmp_path.iterdir()] == ["m_arc"]


def test_what_is_loaded_before_the_first_request_is_all_that_the_checks_load(tmp_path, monkeypatch):
    language_faults._identifier.cache_clear()
    load_checks(LANGUAGES["fr"])
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    assert asked(RECORD, FRENCH)[0]["output"] == FRENCH["output"]


def test_a_dry_run_over_several_languages(tmp_path, capsys):
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
def test_a_dry_run_checks_no_answer_of_the_simulator(tmp_path, monkeypatch, capsys, verb):
    """Checks took nine tenths of its time, and one that failed left out the requests for the record's later parts."""
    data = tmp_path / "m_arc" / "en_test.json"
    data.parent.mkdir()
    long = "\n\n".join(f"The year {n} was warm, and we walked along the river." for n in range(1901, 1951))
    data.write_text(json.dumps([{"instruction": long}] if verb == "translate" else [made_up.arc(1)]))
    monkeypatch.setattr("datagen.translation.fault_of_translation", lambda *args: pytest.fail("a check was run"))
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
        ([{"instruction": "a"}], ["--output", "en.jsonl", "--journal", "j"], "--output en.jsonl is"),
        ([{"instruction": "a"}], ["--split-above", "0"], "--split-above 0 must be 1 or more"),
        ([{"instruction": "a"}], ["--template", "t.txt"], "--template t.txt lacks $language"),
        ([{"instruction": "a"}], ["--decontaminate", "none.jsonl"], "none.jsonl: there is no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_asked(tmp_path, monkeypatch, capsys, rows, flags, message):
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
def test_a_template_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UserError, match=message):
        read_template(tmp_path / "t", **TEMPLATE_NAMES)
    with pytest.raises(UserError, match="--flag .*: No such file"):
        read_template(tmp_path / "none", **TEMPLATE_NAMES, flag="--flag")


def test_ids_are_the_numbers_of_the_records(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "a"}, {"instruction": "b", "id": 9, "more": 1}])
    assert read_instructions([str(tmp_path / "a.jsonl")]) == [
        {"id": "1", "instruction": "a", "input": "", "output": ""},
        {"id": "9", "instruction": "b", "input": "", "output": "", "more": 1},
    ]
