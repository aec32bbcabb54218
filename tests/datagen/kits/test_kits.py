"""Tests of language kits: every shipped kit is valid, and an invalid one is refused by file and field."""

from __future__ import annotations

import copy
import json
import re

import pytest

from datagen.kits import KITS_DIR, kit_codes, load_kit
from datagen.kits.__main__ import main
from datagen.kits.rules import PLACEHOLDERS, read_kit
from engine.base.errors import UserError
from engine.base.languages import LANGUAGES
from engine.base.scripts import main_script

CODES = kit_codes()


def violations(path):
    return read_kit(path)[1]


@pytest.mark.parametrize("code", CODES)
def test_kit_is_valid(code):
    assert violations(KITS_DIR / f"{code}.json") == []
    assert load_kit(code).code == code


@pytest.mark.parametrize("code", CODES)
def test_kit_digits_are_those_in_everyday_use(code):
    native = {"ne": "०१२३४५६७८९", "mr": "०१२३४५६७८९", "bn": "০১২৩৪৫৬৭৮৯"}
    assert load_kit(code).digits == native.get(code, "0123456789")


def test_show_uses_the_kits_digits_and_separator():
    assert load_kit("ne").show(207) == "२०७"
    assert load_kit("en").show(0) == "0"
    assert load_kit("en").show("7 up") == "7 up"
    assert load_kit("ne").show((1, 20, "घर")) == "१, २०, घर"


def test_category_of_and_opposite_of():
    kit = load_kit("en")
    assert kit.category_of["banana"] == "fruits"
    assert len(kit.words) == len(kit.category_of) == sum(map(len, kit.categories.values()))
    assert (kit.opposite_of["big"], kit.opposite_of["small"]) == ("small", "big")


def test_load_kit_is_cached():
    assert load_kit("en") is load_kit("en")


def _english() -> dict:
    return json.loads((KITS_DIR / "en.json").read_text(encoding="utf-8"))


def _set(kit, value, *keys):
    for key in keys[:-1]:
        kit = kit[key]
    kit[keys[-1]] = value


BAD = {
    "missing field": (lambda k: k.pop("months"), "xx.json: months: missing"),
    "unknown field": (lambda k: _set(k, 1, "colour"), "xx.json: colour: unknown field"),
    "wrong code": (lambda k: _set(k, "yy", "code"), "xx.json: code: 'yy' differs"),
    "digits out of order": (lambda k: _set(k, "1023456789", "digits"), "xx.json: digits:"),
    "invisible separator": (lambda k: _set(k, " ", "separator"), "xx.json: separator:"),
    "a number too few": (lambda k: k["numbers"].pop(), "xx.json: numbers: has 30 words, must have 31"),
    "a day twice": (lambda k: _set(k, "MONDAY", "days", 3), "xx.json: days[3]: 'MONDAY' occurs twice"),
    "a space at the end": (lambda k: _set(k, "May ", "months", 4), "xx.json: months[4]:"),
    "not NFC": (lambda k: _set(k, "e\u0301t\u00e9", "months", 4), "NFC"),
    "a digit in a word": (lambda k: _set(k, "May5", "months", 4), "xx.json: months[4]: 'May5' contains a digit"),
    "even and odd equal": (lambda k: _set(k, "even", "odd"), "xx.json: even, odd[1]:"),
    "a number for a word": (lambda k: _set(k, 3, "even"), "xx.json: even, odd[0]: 3 must be"),
    "an opposite used twice": (lambda k: _set(k, "big", "opposites", 5, 1), "xx.json: opposites, flattened[11]:"),
    "few opposites": (lambda k: _set(k, k["opposites"][:5], "opposites"), "xx.json: opposites: has 5 pairs"),
    "a triple": (lambda k: k["opposites"][0].append("x"), "xx.json: opposites: must be a list of"),
    "a small category": (lambda k: _set(k, ["dog"], "categories", "animals"), "xx.json: categories.animals: has 1"),
    "a word in two categories": (lambda k: k["categories"]["fruits"].append("dog"), "'dog' is also in animals"),
    "a label as a word": (lambda k: k["categories"]["fruits"].append("animals"), "is also in the labels"),
    "separator in a word": (lambda k: k["categories"]["fruits"].append("a, b"), "contains a brace or the separator"),
    "a short text": (lambda k: _set(k, "Two words.", "texts", 7), "xx.json: texts[7]: 'Two words.' has 2 words"),
    "a text twice": (lambda k: _set(k, k["texts"][0], "texts", 7), "xx.json: texts[7]:"),
    "a kind missing": (lambda k: k["templates"].pop("add"), "xx.json: templates.add: must be a list"),
    "unknown kind": (lambda k: _set(k, [], "templates", "divide"), "xx.json: templates.divide: unknown kind"),
    "few phrasings": (lambda k: k["templates"]["copy"].pop(), "xx.json: templates.copy: must be a list"),
    "placeholder twice": (
        lambda k: _set(k, "Add {a}, {b}, {b}.", "templates", "add", 0, "instruction"),
        "xx.json: templates.add[0]: must contain {a} and {b} exactly once",
    ),
    "stray brace": (lambda k: _set(k, "{n} }", "templates", "next_number", 0, "instruction"), "no other braces"),
    "input without placeholder": (
        lambda k: _set(k, {"instruction": "Copy {text}", "input": "now"}, "templates", "copy", 0),
        "xx.json: templates.copy[0].input: must be '' or contain",
    ),
    "two placeholders in the input": (
        lambda k: _set(k, {"instruction": "Add these.", "input": "{a} {b}"}, "templates", "add", 0),
        "xx.json: templates.add[0].input: must be ''",
    ),
    "extra key": (lambda k: _set(k, "", "templates", "add", 0, "output"), "xx.json: templates.add[0]: must be"),
    "a phrasing under two kinds": (
        lambda k: _set(k, k["templates"]["sort_up"][0], "templates", "sort_down", 0),
        "xx.json: templates.sort_down[0]: has the same wording as templates.sort_up[0]",
    ),
    "a choice not named": (
        lambda k: _set(k, {"instruction": "Is {n} even?", "input": ""}, "templates", "even_or_odd", 0),
        "xx.json: templates.even_or_odd[0]: must name the choice odd",
    ),
    "choices listed": (
        lambda k: _set(k, "Animals or fruits: {word}?", "templates", "category", 0, "instruction"),
        "xx.json: templates.category[0]: lists choices (animals, fruits)",
    ),
    "nothing in the input": (
        lambda k: _set(k, [{"instruction": f"{i} {{text}}", "input": ""} for i in "abcd"], "templates", "copy"),
        "xx.json: templates.copy: at least one phrasing must have {text} in the input",
    ),
    "everything in the input": (
        lambda k: _set(k, [{"instruction": i, "input": "{text}"} for i in "abcd"], "templates", "copy"),
        "xx.json: templates.copy: at least one phrasing must be all in the instruction",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_kit_is_refused_with_file_and_field(tmp_path, name):
    damage, message = BAD[name]
    kit = {**_english(), "code": "xx"}
    path = tmp_path / "xx.json"
    path.write_text(json.dumps(kit, ensure_ascii=False), encoding="utf-8")
    assert violations(path) == []
    kit = copy.deepcopy(kit)
    damage(kit)
    path.write_text(json.dumps(kit, ensure_ascii=False), encoding="utf-8")
    assert any(message in line for line in violations(path)), violations(path)
    with pytest.raises(UserError, match=r"^xx\.json: ") as caught:
        load_kit("xx", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "xx.json: not UTF-8 JSON"),
        (b"\xff\xfe", "xx.json: not UTF-8 JSON"),
        (b"[]", "xx.json: must be an object"),
        (b'{"code": "xx", "code": "xx"}', "field 'code' is given twice"),
    ],
)
def test_unreadable_kit_gives_one_line(tmp_path, content, message):
    path = tmp_path / "xx.json"
    path.write_bytes(content)
    assert message in violations(path)[0]


def test_unicode_escapes_are_refused(tmp_path):
    kit = {**_english(), "code": "xx", "even": "\u092f\u0941"}
    path = tmp_path / "xx.json"
    path.write_text(json.dumps(kit), encoding="utf-8")
    assert any("\\u escapes" in line for line in violations(path))


def test_unknown_language_suggests_the_nearest_code():
    with pytest.raises(UserError, match="unknown language 'nepali': did you mean 'ne'"):
        load_kit("nepali")


def test_missing_kit_lists_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match="no language kit for 'ne': choose one of "):
        load_kit("ne", tmp_path)


def test_command_prints_every_violation(capsys):
    assert main(["en"]) == 0
    assert capsys.readouterr().out == "en.json: ok\n"
    assert main(["xx"]) == 2
    assert "xx.json: file not found" in capsys.readouterr().out


def test_every_kind_has_one_or_two_placeholders():
    assert len(PLACEHOLDERS) == 24
    assert {len(names) for names in PLACEHOLDERS.values()} == {1, 2}


@pytest.mark.parametrize("code", CODES)
def test_kit_uses_only_the_first_script_of_its_language(code):
    """Check every letter: a Latin "a" in a Cyrillic word is invisible and makes it another word."""
    kit = load_kit(code)
    texts = [*kit.numbers, *kit.days, *kit.months, kit.even, kit.odd, *kit.opposite_of, *kit.categories, *kit.words]
    phrasings = [re.sub(r"\{\w+\}", "", part) for kind in kit.templates.values() for form in kind for part in form]
    script = LANGUAGES[code].scripts[:1]
    for text in filter(lambda text: any(map(str.isalpha, text)), [*texts, *kit.texts, *phrasings]):
        assert main_script(script, text) == (*script, 1.0), text
