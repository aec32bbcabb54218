"""The ready reward functions: their scores on texts worked out by hand, and settings that cannot be."""

import pytest
import torch

from engine.base.errors import UserError
from engine.text.encoding import Prompt
from engine.training.scorers import FunctionScorer, check_outputs

NEPALI = "म हरेक बिहान चिया पिउँछु र दिदी बजारबाट तरकारी ल्याउनुहुन्छ।"
HINDI = "मैं हर सुबह चाय पीता हूँ और दीदी बाज़ार से सब्ज़ी लाती हैं।"


def scores(name, *responses, output="x"):
    scorer = FunctionScorer(f"engine.reward_functions:{name}", torch.device("cpu"))
    count = len(responses)
    return scorer(None, None, ["p"] * count, responses, [output] * count).tolist()


def test_length():
    texts = ("", "abc", "  abcd\n", "abcdefgh", "a" * 10, "a" * 12, "a" * 16, "a" * 99)
    assert scores("length(4, 8)", *texts) == pytest.approx([0.0, 0.75, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0])
    assert scores("length(0, longest=2)", "", "abc") == [1.0, 0.5]


def test_repetition():
    """a b c a b c a b has six trigrams, three of them new; the Chinese text four of three characters, two new."""
    texts = ("a b c a b c a b", "a b c d e", "a b", "", "好吗好吗好吗")
    assert scores("repetition()", *texts) == pytest.approx([-3 / 6, 0.0, 0.0, 0.0, -2 / 4])
    assert scores("repetition(1)", "no no no yes") == pytest.approx([-2 / 4])


def test_language():
    assert scores("language('ne')", NEPALI, HINDI, "hello", "४२", "42", "", " \n") == [1, 0, 0, 1, 1, 0, 0]
    assert scores("language('hi')", NEPALI, HINDI) == [0, 1]


def test_exact_match_takes_the_records_output():
    assert scores("exact_match", "42", " 42\n", "42 and", "", output="42 ") == [1, 1, 0, 0]
    assert scores("exact_match", "e\u0301", output="\u00e9") == [1]


RULES = '[{"rule": "max_words", "value": 2}, {"rule": "keyword", "value": "tea"}]'


def test_rules_give_the_share_that_is_followed():
    texts = ("hot tea", "tea is very hot", "milk is white", "")
    assert scores(f"rules({RULES})", *texts) == [1.0, 0.5, 0.0, 0.0]
    assert scores("record_rules", *texts, output=RULES) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(UserError, match="record_rules reads rules from a record's output: '42' is no|'rules' is 42"):
        scores("record_rules", "tea", output="42")


def test_prompts_must_have_the_output_that_a_reward_wants():
    prompts = [Prompt("a", (5,), "p", "42"), Prompt("b", (5,), "p", "")]
    wants = FunctionScorer("engine.reward_functions:exact_match", torch.device("cpu"))
    check_outputs(wants, prompts[:1], "rl.jsonl")
    check_outputs(FunctionScorer("engine.reward_functions:noise", torch.device("cpu")), prompts, "rl.jsonl")
    with pytest.raises(UserError, match=r"exact_match compares with .* output, and record b of rl.jsonl has none: add"):
        check_outputs(wants, prompts, "rl.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("length(8, 4)", r"--reward length\(8, 4\): give two numbers of characters, the smaller first"),
        ("length(0.5, 4)", "give two numbers of characters"),
        ("length(1)", "missing 1 required positional argument: 'longest'"),
        ("length(1, open)", r"length\(1, open\) has an argument that is no number, text or list of them"),
        ("length(1, __import__('os'))", "has an argument that is no number"),
        ("length(1, 2", "engine.reward_functions:length.*was never closed"),
        ("length(1, 2)(3)", "is no call"),
        ("rules([{'rule': 'max_word', 'value': 2}])", "--reward rules: rule 1 is named 'max_word': did you mean"),
        ("repetition(0)", r"--reward repetition\(0\): give a number of words, 1 or more"),
        ("language('xx')", "unknown language 'xx'"),
        ("language", "missing a required|too many positional"),
    ],
)
def test_wrong_settings(name, message):
    with pytest.raises(UserError, match=message) as error:
        scores(name, "x")
    assert "\n" not in str(error.value)


def test_a_factory_without_its_brackets_is_told_from_a_reward():
    scorer = FunctionScorer("tests.engine.test_reward_functions:factory", torch.device("cpu"))
    with pytest.raises(UserError, match="factory gave <function .*return a finite number, or give its settings"):
        scorer(None, None, ["p"], ["r"], [""])


def factory(shortest, longest):
    def length(prompt, response):
        return 0.0

    return length
