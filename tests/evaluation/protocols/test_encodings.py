"""The encodings of okapi, leaderboard-v1 and lm-eval, against ids computed by hand."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from evaluation.data.files import LocalData
from evaluation.protocols import PROTOCOLS
from evaluation.protocols.encodings import joint_with_special_tokens, joint_without_bos, separate
from evaluation.scoring.build import build
from evaluation.tasks import get_tasks
from tests.evaluation.made_up import byte_ids, byte_tokenizer, everything, llama_ids, llama_tokenizer


@pytest.mark.parametrize("adds_bos", [True, False])
def test_separate_gives_a_llama_choice_a_dummy_prefix(adds_bos):
    """Context and choice each get a dummy prefix, and neither gets BOS."""
    pairs = separate(llama_tokenizer(adds_bos))(["to\n", "ten:"], [" two", " no"]).pairs
    context = llama_ids(" to\nten:")
    assert pairs == [(context, [259, *llama_ids(" two")]), (context, [259, *llama_ids(" no")])]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_joint_splits_after_the_ids_of_the_context(adds_bos):
    tokenizer = llama_tokenizer(adds_bos)
    context = llama_ids(" to\nten:")
    assert joint_without_bos(tokenizer)(["to\n", "ten:"], [" two"]).pairs == [(context, llama_ids(" two"))]
    bos = [1] if adds_bos else []
    assert joint_with_special_tokens(tokenizer)(["to\n", "ten:"], [" two"]).pairs == [
        ([*bos, *context], llama_ids(" two"))
    ]


@pytest.mark.parametrize("encoder", [joint_without_bos, joint_with_special_tokens])
def test_joint_moves_trailing_white_space_to_the_continuation(encoder):
    pairs = encoder(byte_tokenizer())(["A:", " \n "], ["b"]).pairs
    assert pairs == [(byte_ids("A:"), byte_ids(" \n b"))]


def test_joint_adds_no_second_bos():
    (pair,) = joint_with_special_tokens(llama_tokenizer())(["<s>to"], [" a"]).pairs
    assert pair[0].count(1) == 1
    # Unlike strict, these protocols let the tokenizer read "<s>" in a text as the token BOS.
    assert pair[0][0] == 1


def test_joint_loses_a_token_across_the_border_as_lm_eval_does():
    """The text has ": " as one token, but the context alone ends in ":". So the split is off by one character."""
    tokenizer = byte_tokenizer((":", "Ġ"), tokens_cross_words=True)
    (pair,) = joint_with_special_tokens(tokenizer)(["A:"], [" b"]).pairs
    assert pair == (byte_ids("A:"), byte_ids("b"))


def test_choice_without_tokens_is_an_error(tmp_path):
    """The text has ": A" as one token, so none is left for the choice. lm-eval itself fails an assertion here."""
    everything(tmp_path)
    tokenizer = byte_tokenizer((":", "Ġ"), *((":Ġ", letter) for letter in "ABCD"), tokens_cross_words=True)
    task, data = get_tasks(["mmlu"])[0], LocalData(tmp_path)
    with pytest.raises(UserError, match="the choice 'A' has 0 tokens under lm-eval.*choose --protocol strict"):
        build(task, "en", data, tokenizer, PROTOCOLS["lm-eval"], 9_999)
    built = build(task, "en", data, tokenizer, PROTOCOLS["strict"], 9_999)
    assert {choice.continuation_ids for choice in built.documents[0].choices} == {(260,), (261,), (262,), (263,)}
    assert built.counts["resplit"] == len(built.documents)
