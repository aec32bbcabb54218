"""Protocol strict: shots that depend on the question's id only, checked splits, dropped shots and prompt words."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.languages import LANGUAGES
from engine.text.tokenizer import encode_prompt, train_byte_bpe, train_sentencepiece
from evaluation.data.files import LocalData
from evaluation.data.prompt_words import PromptWords, register_words, words_of
from evaluation.protocols import PROTOCOLS
from evaluation.protocols.encodings import prefix_checked
from evaluation.scoring.build import build
from evaluation.scoring.documents import TaskDocuments
from evaluation.tasks import get_tasks
from tests.evaluation.made_up import (
    arc,
    byte_ids,
    byte_tokenizer,
    everything,
    hellaswag,
    llama_ids,
    llama_tokenizer,
    mmlu,
    write,
)

STRICT = PROTOCOLS["strict"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    everything(folder)
    return folder


def run(folder, task: str, lang: str = "en", tokenizer=None, max_length: int = 100_000, **options) -> TaskDocuments:
    tokenizer = tokenizer or byte_tokenizer()
    return build(get_tasks([task])[0], lang, LocalData(folder), tokenizer, STRICT, max_length, **options)


def shots_by_id(built: TaskDocuments) -> dict[str, tuple[str, ...]]:
    return {document.id: document.shot_ids for document in built.documents}


def test_shots_depend_on_ids_only(folder, tmp_path):
    """They do not depend on the order of the files, on the other questions, or on the language."""
    whole = shots_by_id(run(folder, "arc", shots=4))
    assert len(set(whole.values())) == len(whole) == 5
    limited = shots_by_id(run(folder, "arc", shots=4, limit=2))
    assert limited == {name: whole[name] for name in limited}

    everything(tmp_path, "de")
    write(tmp_path, "m_arc/de_test", [arc(n) for n in (4, 1)])
    rows = [arc(n, part="train") for n in range(129, 99, -1)]
    write(tmp_path, "m_arc/de_train", rows)
    reordered = shots_by_id(run(tmp_path, "arc", "de", shots=4))
    assert reordered == {name: whole[name] for name in ("made/test/4", "made/test/1")}


def test_removing_a_shot_keeps_the_other_shots(folder, tmp_path):
    whole = shots_by_id(run(folder, "arc", shots=4))["made/test/0"]
    everything(tmp_path)
    removed = whole[1]
    write(tmp_path, "m_arc/en_train", [row for n in range(100, 130) if (row := arc(n, part="train"))["id"] != removed])
    shots = shots_by_id(run(tmp_path, "arc", shots=4))["made/test/0"]
    assert shots[:3] == (whole[0], *whole[2:])


def test_shots_are_drawn_uniformly(tmp_path):
    everything(tmp_path)
    write(tmp_path, "m_arc/en_test", [arc(n) for n in range(600)])
    drawn = [name for names in shots_by_id(run(tmp_path, "arc", shots=3)).values() for name in names]
    counts = [drawn.count(f"made/train/{n}") for n in range(100, 130)]
    # Each is expected 600 * 3 / 30 = 60 times. The binomial standard deviation is 7.3, and this allows five of them.
    assert min(counts) > 60 - 37 and max(counts) < 60 + 37


def test_another_seed_draws_other_shots(folder):
    assert shots_by_id(run(folder, "arc", shots=4, seed=1)) != shots_by_id(run(folder, "arc", shots=4))


def test_shared_shots_give_a_shared_prefix_of_ids(folder):
    built = run(folder, "arc", shots=7, shared_shots=True)
    assert len({document.shot_ids for document in built.documents}) == 1
    shots = "".join(block + "\n\n" for block in built.documents[0].prompt.split("\n\n")[:-1])
    for document in built.documents:
        assert document.prompt.startswith(shots)
        assert list(document.choices[0].context_ids[: len(byte_ids(shots))]) == byte_ids(shots)


def test_shots_exclude_the_question_and_equal_ones(tmp_path):
    everything(tmp_path)
    rows = [{**hellaswag(0), "ind": 90}, *(hellaswag(n) for n in range(6))]
    write(tmp_path, "m_hellaswag/en_validation", rows)
    for shared in (False, True):
        built = run(tmp_path, "hellaswag", shots=4, shared_shots=shared)
        for document in built.documents:
            forbidden = {"90", "0"} if document.id in ("90", "0") else {document.id}
            assert len(document.shot_ids) == 4 and not forbidden & set(document.shot_ids)


def test_mmlu_takes_the_first_shots_of_the_subject_by_id(tmp_path):
    everything(tmp_path)
    numbers = [10, 2, 0, 4, 1]
    dev = [mmlu("anatomy", n, part="dev") for n in numbers] + [mmlu("virology", 3, part="dev")]
    write(tmp_path, "m_mmlu/en_dev", dev)
    built = run(tmp_path, "mmlu", shots=4)
    by_subject = {document.subject: document.shot_ids for document in built.documents}
    assert by_subject == {
        "anatomy": tuple(f"anatomy/dev/{n}" for n in (0, 1, 2, 4)),
        "virology": ("virology/dev/3",),
    }
    assert built.counts["documents_with_fewer_shots"] == 3


def test_long_prompts_drop_whole_shots(folder):
    whole = run(folder, "arc", shots=6).documents[0]
    longest = max(len(choice.context_ids) + len(choice.continuation_ids) for choice in whole.choices)
    blocks = whole.prompt.split("\n\n")
    for num_dropped in range(7):
        length = longest - sum(len(block) + 2 for block in blocks[:num_dropped])
        for slack in (0, 10):
            document = run(folder, "arc", shots=6, max_length=length - 1 + slack).documents[0]
            assert document.shot_ids == whole.shot_ids[num_dropped:]
            assert document.prompt == "\n\n".join(blocks[num_dropped:])
            assert all(list(choice.context_ids) == byte_ids(document.prompt) for choice in document.choices)
            assert all(choice.truncated == (num_dropped > 0) for choice in document.choices)
    with pytest.raises(UserError, match=r"en_test.json:\d+: the question has 1 tokens more than the \d+ that fit"):
        run(folder, "arc", shots=6, max_length=length - 2)


def test_question_that_does_not_fit_is_left_out_and_counted_with_skip_bad(tmp_path):
    everything(tmp_path)
    rows = [arc(n) for n in (1, 2, 3)]
    rows[1]["instruction"] *= 20
    write(tmp_path, "m_arc/en_test", rows)
    built = run(tmp_path, "arc", shots=2, max_length=200, skip_bad=True)
    assert [document.index for document in built.documents] == [0, 2]
    assert (built.counts["documents"], built.counts["bad_records"]) == (2, 1)
    with pytest.raises(UserError, match=r"en_test.json:\d+: the question has .* leave it out with --bad-records skip"):
        run(tmp_path, "arc", shots=2, max_length=200)
    with pytest.raises(UserError, match="en_test.json: no document fits in 5 tokens: raise --max-length"):
        run(tmp_path, "arc", shots=0, max_length=5, skip_bad=True)


def test_dropped_shots_are_counted(folder):
    built = run(folder, "arc", shots=6, max_length=100)
    dropped = [6 - len(document.shot_ids) for document in built.documents]
    assert built.counts["dropped_shots"] == sum(dropped) > 0
    assert built.counts["documents_with_dropped_shots"] == sum(map(bool, dropped))
    assert "cut_documents" not in built.counts


@pytest.mark.parametrize("lang", LANGUAGES)
def test_prompt_words_are_those_of_the_language(lang, tmp_path):
    """Label and text have exactly the language's gap between them."""
    words = words_of(lang)
    everything(tmp_path, lang)
    text = LANGUAGES[lang].native_name
    rows = [{**arc(n), "instruction": text, "option_a": text} for n in range(2)]
    write(tmp_path, f"m_arc/{lang}_test", rows)
    document = run(tmp_path, "arc", lang, shots=0).documents[0]
    assert document.prompt == f"{words.question}{words.gap}{text}\n{words.answer}"
    assert document.choices[0].text == words.gap + text
    if lang != "en":
        assert "Answer:" not in document.prompt


def test_language_without_prompt_words_is_an_error_until_registered():
    with pytest.raises(UserError, match="no prompt words for 'xz'.*register_words"):
        words_of("xz")
    register_words("xq", PromptWords("Qq:", "Aa:"))
    assert words_of("xq").answer == "Aa:"
    with pytest.raises(UserError, match="has prompt words already"):
        register_words("xq", PromptWords("Other:", "Aa:"))


def test_token_across_the_border_moves_the_split_of_all_choices():
    """One token is ": y", so both choices are split before the colon."""
    tokenizer = byte_tokenizer((":", "Ġ"), (":Ġ", "y"), tokens_cross_words=True)
    encoded = prefix_checked(tokenizer)(["A:"], [" yes", " no"])
    colon_space, colon_space_y = 259, 260
    assert encoded.resplit
    assert encoded.pairs == [
        (byte_ids("A"), [colon_space_y, *byte_ids("es")]),
        (byte_ids("A"), [colon_space, *byte_ids("no")]),
    ]
    plain = prefix_checked(byte_tokenizer())(["A:"], [" yes", " no"])
    assert not plain.resplit
    assert plain.pairs == [(byte_ids("A:"), byte_ids(" yes")), (byte_ids("A:"), byte_ids(" no"))]


def test_only_the_first_block_gets_bos_and_dummy_prefix():
    for adds_bos in (True, False):
        encode = prefix_checked(llama_tokenizer(adds_bos))
        start = [1] if adds_bos else []
        for blocks in (["tea?\n\n", "tin?\n\n", "top:"], ["tea?\n\n", "tin?\ntop:"], ["tea?\ntop:"], ["top:"]):
            expected = [*start, *llama_ids(" " + "".join(blocks))]
            assert encode(blocks, [" tub"]).pairs == [(expected, llama_ids(" tub"))]


@pytest.mark.parametrize("train", [partial(train, vocab_size=3000) for train in (train_byte_bpe, train_sentencepiece)])
def test_blocks_have_the_ids_of_the_whole_text(train, real_data):
    """BLOOM's and LLaMA's kinds of tokenizers have no token across a line break, so splitting there changes no id."""
    for lang in ("ne", "fr", "zh"):
        data = LocalData(real_data)
        tokenizer = train(record["instruction"] for _, record in data.read("m_arc", lang, "train").rows)
        built = build(get_tasks(["arc"])[0], lang, data, tokenizer, STRICT, 100_000, shots=5, limit=25)
        for document in built.documents:
            for choice in document.choices:
                whole = encode_prompt(tokenizer, document.prompt + choice.text)
                assert [*choice.context_ids, *choice.continuation_ids] == whole


def test_special_tokens_in_a_question_stay_text():
    tokenizer = byte_tokenizer()
    assert tokenizer("</s>").input_ids == [2]
    assert prefix_checked(tokenizer)(["</s>:"], [" <s>"]).pairs == [(byte_ids("</s>:"), byte_ids(" <s>"))]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="▁"), min_size=1, max_size=12)
MERGES = ((":", "Ġ"), ("a", "b"), ("Ġ", "a"), (":Ġ", "a"), ("Ċ", "Ċ"))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=4), st.booleans())
def test_ids_decode_to_the_text_and_choices_share_one_context(blocks, options, is_llama):
    """This holds for any text and for tokens across the border. And no choice is without tokens."""
    tokenizer = llama_tokenizer() if is_llama else byte_tokenizer(*MERGES, tokens_cross_words=True)
    encoded = prefix_checked(tokenizer)(blocks, [" " + option for option in options])
    assert len({tuple(context) for context, _ in encoded.pairs}) == 1
    for option, (context, ids) in zip(options, encoded.pairs):
        assert ids
        assert context[: 1 if is_llama else 0] == ([1] if is_llama else [])
        text = "".join(blocks) + " " + option
        assert tokenizer.decode([*context, *ids], skip_special_tokens=True) == text
    if len(blocks) == 1 and "\n" not in blocks[0] and not encoded.resplit:
        assert encoded.pairs[0][0] == encode_prompt(tokenizer, blocks[0])
