"""`translate`, one record: requests, splitting and joining, the reason of each check, and unchanged fields."""

from __future__ import annotations

import asyncio
import json

import pytest

from datagen.api.chat import Rejected, Reply
from datagen.decontaminate import Benchmarks
from datagen.kits import load_kit
from datagen.run.prompt_templates import read_template
from datagen.simulate.answers import simulated_answer
from datagen.simulate.translation import recognize_task
from datagen.text import language_faults
from datagen.text.length_ratios import LengthRatios
from datagen.translate import TEMPLATE_FILE, make_review, make_work
from datagen.translation.texts import TEMPLATE_NAMES, Translator, check_lengths, load_checks
from engine.base.languages import LANGUAGES
from engine.base.records import write_jsonl

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
    """Return the translation and the requested objects. answer: text, object, Reply, or function of the object."""
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


def test_request_contains_only_nonempty_texts():
    translated, requests = asked(RECORD, FRENCH)
    assert translated == {**FRENCH, "input": ""}
    assert list(translated) == list(RECORD)
    assert requests == [{"instruction": RECORD["instruction"], "output": RECORD["output"]}]
    assert asked({"a": "12 + 3", "b": "?"}, "not asked") == ({"a": "12 + 3", "b": "?"}, [])


def test_prompt_names_the_language_and_has_no_placeholders():
    prompt = TEMPLATE.substitute(language="French", native_name="Français", note="", record="{}")
    assert "from English into French (Français)" in prompt and "$" not in prompt


@pytest.mark.parametrize("fenced", [False, True])
def test_code_fence_around_the_answer_is_removed(fenced):
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
def test_all_complete_finish_reasons_are_accepted(finish_reason):
    assert asked(RECORD, Reply(json.dumps(FRENCH), finish_reason, 1, 1))[0]["output"] == FRENCH["output"]


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_added_empty_key_is_allowed(nothing):
    texts = {name: text for name, text in RECORD.items() if text}
    assert asked(texts, {**FRENCH, "input": nothing})[0] == asked(texts, FRENCH)[0]


def test_translated_refusal_of_the_source_is_no_refusal():
    texts = {"output": "I cannot translate this text, said the monk, and went to bed."}
    answer = {"output": "No puedo traducir este texto, dijo el monje, y se fue a la cama."}
    assert asked(texts, answer, lang="es")[0] == answer


def test_unfenced_code_may_change_only_in_comments():
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


def test_length_ratios_are_learned_from_accepted_texts():
    ratios = LengthRatios()
    for n in range(100):
        check_lengths(ratios, {"a": "word " * (20 + n)}, {"a": "mot " * (20 + n)})
    assert ratios.count == 100
    with pytest.raises(Rejected, match=r"length: .* \(in a\)"):
        check_lengths(ratios, {"a": "word " * 50}, {"a": "mot " * 8})
    code = "x = [\n" + "    1,\n" * 40 + "];"
    check_lengths(ratios, {"a": f"Here:\n```\n{code}\n```"}, {"a": f"Ici :\n```\n{code}\n```"})
    assert ratios.count == 101


def test_translation_that_overlaps_a_benchmark_is_rejected(tmp_path):
    words = "un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze"
    write_jsonl(tmp_path / "b.jsonl", [{"question": words}])
    review = make_review(LengthRatios(), Benchmarks([str(tmp_path / "b.jsonl")]))
    record = {"instruction": "Count to fourteen in words, please, my dear friend.", "input": "", "output": ""}
    review(record, [{**record, "instruction": "Compte jusqu'à quatorze en toutes lettres."}])
    with pytest.raises(Rejected, match="overlaps a benchmark: .*b.jsonl:1 question"):
        review(record, [{**record, "instruction": words}])


def test_work_keeps_other_fields():
    async def ask(messages, **params):
        return Reply(simulated_answer(messages), "stop", 1, 1)

    record = {"id": "7", "instruction": "Add 3 and 4.", "input": "", "output": "7", "lang": "ne", "source": "alpaca"}
    translator = Translator(LANGUAGES["ne"], TEMPLATE)
    (row,) = asyncio.run(make_work({"ne": translator})(record, ask))
    assert {**row, "instruction": "", "output": ""} == {**record, "instruction": "", "output": ""}
    assert recognize_task(load_kit("ne"), row["instruction"], "").output == row["output"] == "७"


def test_load_checks_loads_everything_the_checks_need(tmp_path, monkeypatch):
    language_faults._identifier.cache_clear()
    load_checks(LANGUAGES["fr"])
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    assert asked(RECORD, FRENCH)[0]["output"] == FRENCH["output"]
