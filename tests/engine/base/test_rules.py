"""Rules on an answer: each with texts worked out by hand, and the values that none may have."""

import pytest

from engine.base.record_fields import BadField
from engine.base.rules import RULES, Rule, read_rules, rules_in_json, sentences_of, words_of

LIST = "Here:\n1. tea\n2) milk\n"

# rule, value, answers that follow it, answers that do not.
CASES = [
    ("max_words", 3, ["one two three", "म चिया पिउँछु ।", "好的吗。"], ["a b c d", "好的吗？是"]),
    ("min_words", 3, ["one two three", "好的吗", "don't - stop now"], ["one two", "one - two", "好。吗"]),
    ("max_sentences", 2, ["One. Two!", "एक। दुई।", "一。二。", "Pi is 3.14 or so.", "no end"],
     ["One. Two. Three.", "One\nTwo\nThree", "एक। दुई? तीन।"]),
    ("min_sentences", 2, ["One. Two.", "One?! Two", "نعم؟ لا", '"One." Two'], ["One.", "3.14", "One. ...", "一。"]),
    ("max_characters", 4, ["abcd", "  abcd\n", "चिया"], ["abcde"]),
    ("min_characters", 4, ["abcd", "चिया"], ["abc", "abc   "]),
    ("paragraphs", 2, ["a\nb\n\nc", "a\n \n\nb\n\n"], ["a\nb", "a\n\nb\n\nc"]),
    ("numbered_list", 2, [LIST, "१. चिया\n२. दूध", "1、茶\n2、奶"],
     ["1. tea", LIST + "3. juice", "1. tea\n3. milk", "- tea\n- milk", "1.5 cups\n2.5 cups"]),
    ("bullet_list", 2, ["- tea\n* milk", "Here:\n • tea\n • milk\nEnd"], ["- tea", "-tea\n-milk", "- a\n- b\n- c"]),
    ("json_object", ["a"], ['{"a": 1}', '```json\n{"a": 1, "b": []}\n```'],
     ['{"b": 1}', "[1]", '{"a": 1} ok', "{'a': 1}", "a"]),
    ("json_object", [], ["{}"], ["3", "{"]),
    ("title", True, ["# Tea\nIt is hot.", "\n## Tea\n\nIt is hot."], ["Tea\nIt is hot.", "# Tea", "#tea\nIt is hot."]),
    ("language", "ne", ["म हरेक बिहान चिया पिउँछु र दिदी बजारबाट तरकारी ल्याउनुहुन्छ।"],
     ["मैं हर सुबह चाय पीता हूँ और दीदी बाज़ार से सब्ज़ी लाती हैं।", "I drink tea every morning"]),
    ("script", "Deva", ["म चिया, 42!", "मैं चाय"], ["म tea", "42", "tea"]),
    ("keyword", "tea", ["TEA!", "teapot", "a tea"], ["te a", "milk"]),
    ("keyword", "\u00e9t\u00e9", ["l'e\u0301te\u0301"], ["ete"]),
    ("forbidden", "tea", ["milk"], ["Tea", "teapot"]),
    ("starts_with", "Dear", ["dear you", "  Dear"], ["my dear", "De ar"]),
    ("ends_with", "Good night!", ["Sleep. good night", "Good night.\n", '"Good night!"'], ["Good night, all", "night"]),
    ("ends_with", "शुभ रात्री", ["अब शुभ रात्री।"], ["शुभ रात्री साथी।"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "right", "wrong"), CASES)
def test_by_hand(name, value, right, wrong):
    rule = Rule(name, value)
    assert [text for text in right if not rule.holds(text)] == []
    assert [text for text in wrong if rule.holds(text)] == []
    assert not rule.holds("") and not rule.holds(" \n")


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


def test_words_and_sentences():
    assert words_of("Tea — at 5 o'clock.") == ["Tea", "at", "5", "o'clock."]
    assert words_of("喝茶 tea。") == ["喝", "茶", "tea。"]
    assert sentences_of("Is it so? Yes.\nNo") == ["Is it so", " Yes", "No"]


def test_rules_are_read_from_lists_and_from_json():
    wanted = (Rule("max_words", 30), Rule("json_object", ("a",)))
    records = [{"rule": "max_words", "value": 30}, {"rule": "json_object", "value": ["a"]}]
    assert read_rules(records) == wanted
    assert rules_in_json('[{"rule": "max_words", "value": 30}, {"rule": "json_object", "value": ["a"]}]') == wanted
    assert len({*wanted, *read_rules(records)}) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "field 'rules' is None: it must list rules such as"),
        ([], r"field 'rules' is \[\]"),
        (["max_words"], "rule 1 is 'max_words': it must have the fields rule and value, and no other"),
        ([{"rule": "max_words", "value": 3, "x": 1}], "rule 1 is .*and no other"),
        ([{"rule": "max_word", "value": 3}], "rule 1 is named 'max_word': did you mean 'max_words'"),
        ([{"rule": ["a"], "value": 3}], r"rule 1 is named \['a'\]: choose from max_words"),
        ([{"rule": "max_words", "value": 0}], "rule 1, max_words, has the value 0: give a whole number, 1 or more"),
        ([{"rule": "max_words", "value": True}], "has the value True"),
        ([{"rule": "title", "value": 1}], "has the value 1: give true"),
        ([{"rule": "json_object", "value": [1]}], "give a list of the keys"),
        ([{"rule": "keyword", "value": " . "}], "give a text with a letter or a digit"),
        ([{"rule": "keyword", "value": "a\ud800"}], "half a surrogate pair"),
        ([{"rule": "language", "value": "xx"}], "give a language code"),
        ([{"rule": "script", "value": "Abcd"}], "give a script that this program knows"),
    ],
)
def test_bad_rules_are_one_sentence(value, message):
    with pytest.raises(BadField, match=message) as error:
        read_rules(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "max_words", "[", '{"rule": "max_words", "value": 3}', "[NaN]"])
def test_text_without_rules(text):
    with pytest.raises(BadField) as error:
        rules_in_json(text)
    assert "\n" not in str(error.value)
