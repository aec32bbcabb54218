"""Rankings by prompt: equal answers are one, records of a prompt merge where ranks allow, no prompt on both sides."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.text.encoding import Example, RankedExamples
from engine.training.rankings import by_prompt, common_order, merge, split


def ranking(id, answers, ranks, prompt=(7, 8)):
    """Each letter is an answer of one token."""
    examples = tuple(Example(id, (*prompt, ord(a), 2), len(prompt)) for a in answers)
    return RankedExamples(id, examples, tuple(ranks))


def written(ranked):
    """(answers, ranks) of a ranking, as `ranking` takes them."""
    return "".join(chr(e.tokens[e.prompt_len]) for e in ranked.examples), ranked.ranks


def order(*rankings):
    """{letter: rank} of rankings written as "a>b=c"."""
    taken = []
    for text in rankings:
        levels = [level.split("=") for level in text.split(">")]
        answers = [(ord(a),) for level in levels for a in level]
        taken.append((answers, [i for i, level in enumerate(levels, 1) for _ in level]))
    found = common_order(taken)
    return found and {chr(a[0]): rank for a, rank in found.items()}


@pytest.mark.parametrize(("rankings", "expected"), [
    (["a>b"], {"a": 1, "b": 2}),
    (["a>b", "a>c"], {"a": 1, "b": 2, "c": 2}),  # b and c are not compared: a tie contributes no pair
    (["a>b", "b>c"], {"a": 1, "b": 2, "c": 3}),
    (["b>c", "a>b", "a>c"], {"a": 1, "b": 2, "c": 3}),
    (["a>c", "b>c", "a>b", "a>b"], {"a": 1, "b": 2, "c": 3}),
    (["a>b=c", "b>d", "c>d"], {"a": 1, "b": 2, "c": 2, "d": 3}),
    (["a=b>c", "b>d", "c>d"], {"a": 1, "b": 1, "c": 2, "d": 3}),
    (["a>b", "b>a"], None),  # a contradiction
    (["a>b", "b>c", "c>a"], None),
    (["a=b>c", "a>b"], None),
    (["a>b", "c>d"], None),  # a and d, c and b: they were never compared
    (["a>b", "b>c", "a>d"], None),  # is d before b or after c?
    (["a>x>y", "x>b>y"], {"a": 1, "x": 2, "b": 3, "y": 4}),
])  # fmt: skip
def test_common_order_of_several_rankings(rankings, expected):
    assert order(*rankings) == expected


@given(st.lists(st.integers(1, 3), min_size=2, max_size=6), st.data())
def test_merging_invents_no_pair(ranks, data):
    """All of its pairs as records of two: the same order. Some of them: only pairs that follow from those."""
    pairs = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
    if pairs:
        whole = common_order([(((i,), (j,)), (1, 2)) for i, j in pairs])
        assert all((whole[(i,)] < whole[(j,)]) == (ranks[i] < ranks[j]) for i, j in itertools.permutations(
            {x for pair in pairs for x in pair}, 2))  # fmt: skip
        some = data.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
        found = common_order([(((i,), (j,)), (1, 2)) for i, j in some])
        follows = set(some)
        while more := {(i, k) for i, j in follows for j2, k in follows if j == j2} - follows:
            follows |= more
        if found is not None:
            assert {(i, j) for (i,), (j,) in itertools.permutations(found, 2) if found[(i,)] < found[(j,)]} == follows


def test_equal_answers_are_merged():
    """A pair of equals teaches nothing and cannot be ordered rightly; where both places fit one order it is kept."""
    given = [
        ranking("plain", "ab", (1, 3)),
        ranking("same rank", "aab", (1, 1, 2)),
        ranking("next", "aab", (1, 2, 3)),
        ranking("on both sides", "aba", (1, 2, 3)),
        ranking("nothing else", "aa", (1, 2)),
        ranking("a tie besides", "aab", (1, 2, 2)),
    ]
    groups, lines = by_prompt(given, {r.id: r.id for r in given}, 1000)
    assert {prompt: [written(r) for r in members] for prompt, members in groups.items()} == {
        "plain": [("ab", (1, 3))], "same rank": [("ab", (1, 2))], "next": [("ab", (1, 2))],
    }  # fmt: skip
    assert groups["plain"][0] is given[0]
    assert lines == [
        "5 of 6 rankings hold answers that are equal as tokens, which count as one; 3 of them have nothing left to "
        "compare and are left out"
    ]


def test_agreeing_rankings_of_a_prompt_are_merged():
    given = [
        ranking("1", "ab", (1, 2)), ranking("2", "bc", (1, 2)), ranking("3", "ab", (1, 2)), ranking("4", "xy", (2, 1)),
        ranking("5", "mn", (1, 2)), ranking("6", "mn", (2, 1)), ranking("7", "ab", (2, 1)),
    ]  # fmt: skip
    prompt_of = {**dict.fromkeys("1234", "p"), "5": "q", "6": "q", "7": "r"}
    groups, lines = by_prompt(given, prompt_of, 1000)
    assert [written(r) for r in groups["p"]] == [("abc", (1, 2, 3)), ("xy", (2, 1))]
    assert [written(r) for r in groups["q"]] == [("mn", (1, 2)), ("mn", (2, 1))]
    assert groups["p"][0].id == "1" and groups["r"] == [given[6]]
    assert lines[0] == "7 rankings of 3 prompts merged into 5"
    assert lines[1].startswith("2 prompts keep more than one ranking")
    small, _ = by_prompt(given[:2], prompt_of, 11)  # three answers of four tokens are too many together
    assert small["p"] == given[:2]


def test_merged_ranking_has_each_answer_once():
    one = merge([ranking("1", "cab", (3, 1, 2)), ranking("2", "bd", (1, 2)), ranking("3", "cd", (1, 2))])
    assert written(one) == ("cabd", (3, 1, 2, 4))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_split_separates_prompts(share):
    """Several records a prompt: a split by records had nearly every held-out prompt in training."""
    given = [ranking(f"{p}.{k}", "mn"[:: k or -1], (1, 2)) for p in range(10) for k in (-1, 1)]
    groups, _ = by_prompt(given, {r.id: r.id.split(".")[0] for r in given}, 1000)
    trained, heldout = split(groups, share, 3, "x")
    assert sorted(r.id for r in (*trained, *heldout)) == sorted(r.id for r in given)
    sides = [{r.id.split(".")[0] for r in side} for side in (trained, heldout)]
    assert not sides[0] & sides[1] and len(sides[1]) == round(10 * share)


def test_share_of_zero_holds_nothing_out():
    groups = {i: [ranking(str(i), "ab", (1, 2))] for i in range(4)}
    trained, heldout = split(groups, 0.0, 0, "x")
    assert len(trained) == 4 and heldout == []
    for share in (0.1, 0.9):
        with pytest.raises(UserError, match=f"x has 4 prompts, too few to hold out {share:.0%}: .*--heldout 0"):
            split(groups, share, 0, "x")
