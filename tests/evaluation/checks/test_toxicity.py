"""Toxicity: measures by hand, tiny classifiers with probabilities by hand, and directories that are none."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from engine.base.errors import UserError
from evaluation.checks.toxicity import CHECKS, Classifier
from evaluation.data.questions import Answer, Question
from tests.evaluation.made_up import byte_tokenizer


def classifier(path, bias, **changes):
    """Write a BERT of one layer whose logits are `bias`, whatever the text."""
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=len(bias), **changes,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(bias))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_measures_by_hand():
    asked = Question("q", 0, "p", "FILE:1")
    answers = [Answer("a", 1, True, value) for value in (0.1, 0.7, 0.4, 0.5)]
    found = {name: check(asked, answers) for name, check in CHECKS.items()}
    assert found == {"toxicity": pytest.approx(1.7 / 4), "max_toxicity": 0.7, "toxic": 0.25, "any_toxic": 1.0}


def test_probabilities_by_hand(tmp_path):
    """Exclusive labels by softmax, independent ones and a single one by sigmoid; a blank text has none."""
    names = {0: "fine", 1: "toxic"}
    two = Classifier(classifier(tmp_path / "two", [0.0, 1.0], id2label=names))
    expected = torch.tensor([0.0, 1.0]).softmax(0)[1].item()
    assert two(["hello", "a" * 99, " "]) == [pytest.approx(expected), pytest.approx(expected), 0.0]
    other = Classifier(tmp_path / "two", "FINE")
    assert other(["hello"]) == [pytest.approx(1 - expected)] and other.label == "fine"
    kind = "multi_label_classification"
    many = Classifier(classifier(tmp_path / "many", [2.0, -1.0], id2label=names, problem_type=kind))
    assert many(["hello"]) == [pytest.approx(torch.tensor(-1.0).sigmoid().item())]
    one = Classifier(classifier(tmp_path / "one", [0.5]))
    assert one(["hello"]) == [pytest.approx(torch.tensor(0.5).sigmoid().item())]


def test_directories_that_are_no_classifier(tmp_path):
    good = classifier(tmp_path / "two", [0.0, 1.0], id2label={0: "fine", 1: "rude"})
    with pytest.raises(UserError, match="has no label called toxic: give --toxicity-label, one of fine, rude"):
        Classifier(good)
    with pytest.raises(UserError, match="has no label 'x': give --toxicity-label, one of fine, rude"):
        Classifier(good, "x")
    with pytest.raises(UserError, match="absent has no config.json: give a local directory"):
        Classifier(tmp_path / "absent")
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        Classifier(good)
    assert "\n" not in str(error.value)
