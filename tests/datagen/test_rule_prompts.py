"""Prompts with rules: words in every language, rules that do not contradict each other, one-line errors."""

import json

import pytest

from datagen import rule_prompts
from datagen.__main__ import main
from datagen.kits import kit_codes
from datagen.rule_prompts import WORDS, make_prompts
from engine.base.languages import LANGUAGES, get_language
from engine.base.rules import RULES, Rule, read_rules
from engine.base.scripts import main_script


def test_every_language_has_every_sentence_in_its_script():
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    assert set(words) == set(kit_codes()) == set(LANGUAGES) & set(words)
    for code, sentences in words.items():
        assert list(sentences) == list(words["en"]) and set(sentences) - {"write"} <= set(RULES)
        for kind, text in sentences.items():
            places = {"write": "word", "max_words": "n", "max_sentences": "n", "numbered_list": "n"}
            places |= dict.fromkeys(("keyword", "forbidden", "ends_with"), "text")
            assert text.count("{") == (kind in places) and f"{{{places.get(kind, '')}}}" in text + "{}", (code, kind)
            if kind == "json_object":
                assert '"name"' in text and '"text"' in text
            elif kind == "title":
                assert '"# "' in text
            else:
                plain = text.replace("{word}", "").replace("{text}", "").replace("{n}", "")
                assert main_script(get_language(code).scripts, plain)[1] == 1.0, (code, kind)


def answer_to(record, kit_word_count=0):
    """Return an answer that follows all rules of a record, built by hand from their values."""
    rules = {rule["rule"]: rule["value"] for rule in record["rules"]}
    said = rules.get("keyword", "42")
    if "json_object" in rules:
        return json.dumps({"name": said, "text": ""}, ensure_ascii=False)
    lines = ["# 7"] if "title" in rules else []
    lines += [f"{n}. {said}" for n in range(1, rules.get("numbered_list", 0) + 1)] or [said]
    return "\n".join([*lines, *([rules["ends_with"]] if "ends_with" in rules else [])])


@pytest.mark.parametrize("lang", kit_codes())
def test_an_answer_can_follow_all_rules_of_a_prompt(lang):
    kinds = set()
    for record in make_prompts(lang, 120, 0):
        rules = read_rules(record["rules"])
        kinds |= {rule.name for rule in rules}
        assert 1 <= len(rules) <= 3 and "{" not in record["prompt"]
        answer = answer_to(record)
        # A short list of words may be taken for another language; whether the language can be told is tested elsewhere.
        assert [r for r in rules if r.name != "language" and not r.holds(answer)] == [], (record, answer)
    assert kinds == {"max_words", "max_sentences", "numbered_list", "json_object", "title", "keyword", "forbidden",
                     "ends_with", "language"}  # fmt: skip


def test_seeds_draw_other_prompts_and_the_first_do_not_depend_on_the_number():
    assert make_prompts("ne", 5, 0) == make_prompts("ne", 9, 0)[:5] != make_prompts("ne", 5, 1)


def test_numbers_are_in_the_digits_of_the_language():
    prompts = [r for r in make_prompts("ne", 60, 0) if Rule("max_words", 30) in read_rules(r["rules"])]
    assert prompts and all("३०" in record["prompt"] for record in prompts)


def test_files_for_evaluation_and_for_ppo(tmp_path, capsys):
    plain, ppo = tmp_path / "ne_test.jsonl", tmp_path / "rl.jsonl"
    assert not main(["rules", "--lang", "ne", "--size", "3", "--output", str(plain)])
    assert not main(["rules", "--lang", "ne", "--size", "3", "--output", str(ppo), "--for-ppo"])
    records, prompts = ([json.loads(line) for line in path.read_text().splitlines()] for path in (plain, ppo))
    assert [r["rules"] for r in records] == [json.loads(p["output"]) for p in prompts]
    assert [r["prompt"] for r in records] == [p["instruction"] for p in prompts]
    assert "3  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lang", "nep"], "unknown language 'nep'"),
        (["--lang", "ne", "--size", "0"], "--size is 0: give 1 or more"),
        (["--lang", "ne", "--output", "there.jsonl"], "--output there.jsonl exists: --overwrite replaces it"),
        (["--lang", "ne", "--output", "new.txt"], "cannot write new.txt: the name must end in"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").touch()
    assert main(["rules", "--output", "new.jsonl", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "new.jsonl").exists() and rule_prompts.DEFAULT_SIZE == 200
