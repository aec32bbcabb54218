"""Encodings of the protocols that came before, with ids worked out by hand."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from evaluation.data.files import LocalData
from evaluation.protocols import PROTOCOLS
from evaluation.protocols.encodings import apart, joint_as_tokenizer, joint_without_bos
from evaluation.scoring.build import build
from evaluation.tasks import get_tasks
from tests.evaluation.made_up import byte_ids, byte_tokenizer, everything, llama_ids, llama_tokenizer


@pytest.mark.parametrize("adds_bos", [True, False])
def test_apart_gives_llama_a_second_word_start(adds_bos):
    """The context's dummy prefix, and one more before the blank of the choice; BOS never."""
    pairs = apart(llama_tokenizer(adds_bos))(["to\n", "ten:"], [" two", " no"]).pairs
    context = llama_ids(" to\nten:")
    assert pairs == [(context, [259, *llama_ids(" two")]), (context, [259, *llama_ids(" no")])]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_joint_cuts_where_the_context_s_own_ids_end(adds_bos):
    tokenizer = llama_tokenizer(adds_bos)
    context = llama_ids(" to\nten:")
    assert joint_without_bos(tokenizer)(["to\n", "ten:"], [" two"]).pairs == [(context, llama_ids(" two"))]
    bos = [1] if adds_bos else []
    assert joint_as_tokenizer(tokenizer)(["to\n", "ten:"], [" two"]).pairs == [([*bos, *context], llama_ids(" two"))]


@pytest.mark.parametrize("encoder", [joint_without_bos, joint_as_tokenizer])
def test_white_space_at_the_context_s_end_goes_to_the_continuation(encoder):
    pairs = encoder(byte_tokenizer())(["A:", " \n "], ["b"]).pairs
    assert pairs == [(byte_ids("A:"), byte_ids(" \n b"))]


def test_a_text_that_begins_with_bos_gets_no_second_one():
    (pair,) = joint_as_tokenizer(llama_tokenizer())(["<s>to"], [" a"]).pairs
    assert pair[0].count(1) == 1
    # The text's own "<s>" is read as the token in these protocols, which take the tokenizer as it is.
    assert pair[0][0] == 1


def test_joint_follows_lm_eval_into_a_token_across_the_border():
    """ ": " is one token: the context alone ends in ":", which the joint text does not have, and the cut is off."""
    tokenizer = byte_tokenizer((":", "Ġ"), pieces_cross_words=True)
    (pair,) = joint_as_tokenizer(tokenizer)(["A:"], [" b"]).pairs
    assert pair == (byte_ids("A:"), byte_ids("b"))


def test_a_choice_without_tokens_is_one_line(tmp_path):
    """ ": A" is one token: lm-eval fails an assertion here."""
    everything(tmp_path)
    tokenizer = byte_tokenizer((":", "Ġ"), *((":Ġ", letter) for letter in "ABCD"), pieces_cross_words=True)
    task, data = get_tasks(["mmlu"])[0], LocalData(tmp_path)
    with pytest.raises(UserError, match="the choice 'A' has 0 tokens under lm-eval.*choose --protocol strict"):
        build(task, "en", data, tokenizer, PROTOCOLS["lm-eval"], 9_999)
    built = build(task, "en", data, tokenizer, PROTOCOLS["strict"], 9_999)
    assert {choice.continuation_ids for choice in built.documents[0].choices} == {(260,), (261,), (262,), (263,)}
    assert built.counts["resplit"] == len(built.documents)
