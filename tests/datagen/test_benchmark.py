"""`benchmark`: translated and unchanged fields of each schema, faulty options, and user errors."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from datagen.__main__ import main
from datagen.api.chat import Rejected, Reply
from datagen.benchmark import make_work
from datagen.kits import load_kit
from datagen.run.prompt_templates import read_template
from datagen.tasks.benchmarks import make_benchmarks
from datagen.translate import TEMPLATE_FILE
from datagen.translation.benchmark_schemas import item_texts, option_faults, with_texts
from datagen.translation.texts import TEMPLATE_NAMES, Translator
from engine.base.languages import LANGUAGES
from tests.datagen.serving import serving

ARC = {"id": "ARC/1", "answer": "B", "instruction": "What do plants need?", "option_a": "Salt and sand",
       "option_b": "Water and light", "option_c": "Coins", "option_d": "12", "option_e": "", "kind": "x"}  # fmt: skip
HELLASWAG = {"ind": 4, "activity_label": "Rowing", "ctx": "A man rows. He", "ctx_a": "A man rows. He", "ctx_b": "",
             "endings": ["sinks slowly.", "sings loudly."], "label": "1", "id": "4"}  # fmt: skip
TRUTHFULQA = {
    "question": "Do cats bark?",
    "mc1_targets_choices": ["No, they meow", "Yes, they bark"],
    "mc2_targets_choices": ["No, they meow", "They never bark", "Yes, they bark"],
    "mc1_targets_labels": [1, 0],
    "mc2_targets_labels": [1, 1, 0],
}


def translated(item, render):
    """Return the item, translated by a model that applies `render` to each text, and the objects requested."""
    asked = []

    async def ask(messages, **params):
        prompt = messages[0]["content"]
        asked.append(json.loads(prompt[prompt.rindex("\n{\n") :]))
        return Reply(json.dumps({place: render(text) for place, text in asked[-1].items()}), "stop", 1, 1)

    translator = Translator(LANGUAGES["ne"], read_template(TEMPLATE_FILE, **TEMPLATE_NAMES))
    (row,) = asyncio.run(make_work(translator)({"file": "f", "item": item}, ask))
    assert row["file"] == "f"
    return row["item"], asked


def nepali(text):
    """Return Nepali words, different for different texts, with the numbers of the text."""
    words = load_kit("ne").words
    return " ".join(word if word.isdigit() else words[sum(map(ord, word)) % len(words)] for word in text.split())


@pytest.mark.parametrize("item", [ARC, HELLASWAG, TRUTHFULQA], ids=["arc", "hellaswag", "truthfulqa"])
def test_only_text_fields_change(item):
    there, asked = translated(item, nepali)
    texts = {place: text for place, text in item_texts(item).items() if text}
    assert item_texts(there) == {place: nepali(text) if text else "" for place, text in item_texts(item).items()}
    assert with_texts(there, item_texts(item)) == item and list(there) == list(item)
    assert len(asked) == 1 and sorted(asked[0].values()) == sorted(set(texts.values()))


def test_text_fields_of_each_schema():
    assert list(item_texts(ARC)) == ["instruction", "option_a", "option_b", "option_c", "option_d", "option_e"]
    assert list(item_texts(HELLASWAG)) == ["activity_label", "ctx", "ctx_a", "ctx_b", "endings[0]", "endings[1]"]
    assert sum(place.startswith("mc") for place in item_texts(TRUTHFULQA)) == 5


def test_equal_and_empty_options_are_found():
    assert option_faults({**ARC, "option_e": "Sand"}) == []
    assert option_faults(ARC) == ["empty options: option_e"]
    equal = {**HELLASWAG, "endings": ["Sinks  slowly.", "sinks slowly."]}
    assert option_faults(equal) == ["equal options: endings[0] and endings[1]"]
    assert option_faults(TRUTHFULQA) == []  # the two lists share a choice, but neither repeats one
    twice = {**TRUTHFULQA, "mc2_targets_choices": ["a", "b", "A"]}
    assert option_faults(twice) == ["equal options: mc2_targets_choices[0] and mc2_targets_choices[2]"]


def test_options_that_become_equal_or_empty_are_rejected():
    with pytest.raises(Rejected, match=r"equal options: endings\[0\] and endings\[1\]"):
        translated(HELLASWAG, lambda text: nepali("boat") if "loudly" in text or "slowly" in text else nepali(text))
    with pytest.raises(Rejected, match="empty: "):
        translated(HELLASWAG, lambda text: "" if text == "sinks slowly." else nepali(text))
    already = {**HELLASWAG, "endings": ["sinks.", "sinks."]}
    assert translated(already, nepali)[0]["endings"] == [nepali("sinks.")] * 2


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _write(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return str(path)


def is_text(field):
    """Return whether a field, by its name, contains text to translate."""
    return field in item_texts({field: ""}) or field == "endings" or field.endswith("_choices")


def _benchmark(url, files, output, *more, lang="ne"):
    return main(["benchmark", "--lang", lang, "--data", *files, "--output", str(output), "--base-url", url, *more])


@pytest.mark.parametrize("lang", ["ne", "vi", "ar"])
def test_embedded_benchmarks_through_the_simulator(tmp_path, capsys, lang):
    """All four benchmarks and their few-shot files share one run and journal. A restart sends no requests."""
    made = {name: items[:6] for name, items in make_benchmarks(load_kit("en"), 0).items()}
    files = [_write(tmp_path / "src" / name, items) for name, items in made.items()]
    output = tmp_path / "out"
    with serving(faults={"500": 0.1}) as simulator:
        assert _benchmark(simulator.url, files, output, lang=lang) == 0
        asked = simulator.counts.requests
        assert _benchmark(simulator.url, files, output, lang=lang) == 0
        assert simulator.counts.requests == asked
    assert len(made) == 8 and any("dev" in name for name in made)
    rejected = output / f"{lang}.rows.jsonl.quarantine.jsonl"
    lost = len(rejected.read_text().splitlines()) if rejected.exists() else 0
    kept = 0
    for name, items in made.items():
        there = read(output / re.sub("/en_", f"/{lang}_", name))
        untouched = [{k: v for k, v in item.items() if not is_text(k)} for item in items]
        for item in there:
            assert {k: v for k, v in item.items() if not is_text(k)} in untouched
            assert option_faults(item) == []
        kept += len(there)
    assert kept + lost == sum(map(len, made.values())) and lost <= 3
    assert f"6 of 6  {output}/m_hellaswag/{lang}_validation.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("m_arc/en_test.json", {"a": 1}, "m_arc/en_test.json:1: the fields a match no benchmark"),
        ("m_arc/en_test.json", {k: v for k, v in ARC.items() if k != "answer"}, "field 'answer' is missing: every ARC"),
        ("m_arc/en_test.json", {**ARC, "option_b": 3}, "en_test.json:1: field 'option_b' is 3"),
        ("m_h/en_validation.json", {**HELLASWAG, "endings": "x"}, "field 'endings' is 'x': it must be a list"),
        ("m_h/validation.json", HELLASWAG, "validation.json: the name must be like m_arc/en_test.json"),
    ],
)
def test_user_errors_are_one_line_before_any_request(tmp_path, monkeypatch, capsys, name, item, message):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / name, [item])
    assert main(["benchmark", "--lang", "ne", "--data", name, "--output", "out"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_run_without_items_fails(tmp_path, capsys):
    items = make_benchmarks(load_kit("en"), 0)["m_arc/en_test.json"][:3]
    file = _write(tmp_path / "m_arc/en_test.json", items)
    with serving(answer=lambda messages, seed: "no JSON") as simulator:
        assert _benchmark(simulator.url, [file], tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert (
        "0 of 3" in captured.out and "3 of 3 records were rejected, the first: JSON: " in captured.err.splitlines()[-1]
    )


def test_equal_targets_and_english_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [_write(tmp_path / folder / "m_arc" / "en_test.json", [ARC]) for folder in "ab"]
    assert main(["benchmark", "--lang", "ne", "--data", *files, "--output", "out"]) == 2
    assert "would both become out/m_arc/ne_test.json" in capsys.readouterr().err
    assert main(["benchmark", "--lang", "en", "--data", files[0], "--output", "a"]) == 2
    assert "--lang en: the items are in English already" in capsys.readouterr().err


def test_dry_run_on_real_items(tmp_path, real_data, capsys):
    """English ARC and HellaSwag, and TruthfulQA's schema. The plan has one request per item, more for long items."""
    files = [str(real_data / name) for name in ("m_arc/en_test.json", "m_hellaswag/en_validation.json")]
    small = [_write(tmp_path / "/".join(name.rsplit("/")[-2:]), read(name)[:50]) for name in files]
    truthful = read(real_data / "m_truthfulqa" / "vi_validation.json")[:20]
    small.append(_write(tmp_path / "m_truthfulqa" / "en_validation.json", truthful))
    assert _benchmark("http://127.0.0.1:9/v1", small, tmp_path / "out", "--dry-run") == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:3] == ["ne", "120", "0"] and 120 <= int(row[3]) <= 140
