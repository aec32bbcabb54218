"""Conversations as token ids: exact spans, generation sees what was trained, transformers renders the same, cuts."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.records import InstructionRecord, RankingRecord
from engine.base.turns import Turn
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_answers, encode_chat
from engine.text.encoding import encode_instructions, encode_prompts, encode_rankings
from engine.text.templates import TEMPLATES
from engine.text.tokenizer import decode, encode_response, train_byte_bpe
from tests.engine.text.tokenizer_kinds import KINDS, tokenizer_of

NAMES = (*TEMPLATES, "chat")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_template = pytest.mark.parametrize("name", NAMES)
words = st.text(st.sampled_from("ab 1é中,"), min_size=1, max_size=12).filter(str.strip)


def template_of(kind, name):
    return ChatTemplate(tokenizer_of(kind)) if name == "chat" else TEMPLATES[name]


def eos_of(kind):
    """The tokenizer's EOS, and the end of a turn where that is another token."""
    tokenizer = tokenizer_of(kind)
    return [i for i in tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|end|>"]) if i != tokenizer.unk_token_id and i]


def record_of(*texts, system=None):
    """A conversation; the texts are the user's and the assistant's in turn, the last one an answer."""
    turns = [Turn("system", system)] if system else []
    turns += [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return InstructionRecord("a", texts[-2], "", texts[-1], tuple(turns[:-2]))


def encode(kind, name, record, limit=9999, truncate="error"):
    (example,) = encode_instructions(
        [record], tokenizer_of(kind), template_of(kind, name), limit, truncate, eos_of(kind)
    )
    return example


def spans_of(example):
    return [*example.earlier, (example.prompt_len, len(example.tokens))]


def plain(kind, text):
    """A text as its tokens say it."""
    tokenizer = tokenizer_of(kind)
    return decode(tokenizer, encode_response(tokenizer, text)).strip()


@each_kind
@each_template
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(words, min_size=1, max_size=4), answers=st.data(), system=st.none() | words)
def test_learned_tokens_are_the_answers(kind, name, texts, answers, system):
    """Each span decodes to its answer, ends with a token that ends a response, and begins where generation begins."""
    tokenizer, template = tokenizer_of(kind), template_of(kind, name)
    said = [answers.draw(words) for _ in texts]
    record = record_of(*(text for pair in zip(texts, said) for text in pair), system=system)
    try:
        example = encode(kind, name, record)
    except UserError as error:
        assert name == "chat" and "does not keep message" in str(error)
        assume(False)
    ends = {tokenizer.eos_token_id, *eos_of(kind)}
    messages = [turn.message for turn in (*record.history, Turn("user", record.instruction))]
    answered = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(example.earlier) == len(answered)
    for (start, end), text, at in zip(spans_of(example), said, [*answered, len(messages)], strict=True):
        assert decode(tokenizer, example.tokens[start : end - 1]).strip() == plain(kind, text)
        assert example.tokens[end - 1] in ends and not ends & set(example.tokens[start : end - 1])
        assert list(example.tokens[:start]) == encode_chat(tokenizer, template, messages[:at])
    assert example.num_learned == sum(end - start for start, end in spans_of(example))


@each_kind
def test_usual_answers_are_kept_by_every_chat_template(kind):
    """So that the property above has something to say."""
    example = encode(kind, "chat", record_of("Hi", "Good morning.", "नमस्ते", "शुभ प्रभात", "x", "1, 2"))
    assert len(example.earlier) == 2


@pytest.mark.parametrize("kind", ["chatml", "llama3", "phi3"])
def test_the_sequence_is_what_transformers_renders(kind):
    """An answer's tokens are those of the dialog with it, less those of the dialog before it."""
    tokenizer = tokenizer_of(kind)
    record = record_of("Hi", "Good morning.", "and now?", "Bye", system="Be brief")
    messages = [turn.message for turn in (*record.history, Turn("user", record.instruction), Turn("assistant", "Bye"))]
    example, spans = encode(kind, "chat", record), []
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    for i in (2, 4):
        before = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)["input_ids"]
        through = tokenizer.apply_chat_template(messages[: i + 1])["input_ids"]
        assert through[: len(before)] == before and whole[: len(through)] == through
        ends = {tokenizer.eos_token_id, *eos_of(kind)}
        end = next(at for at in range(len(before), len(through)) if through[at] in ends)
        spans.append((len(before), end + 1))
    assert spans_of(example) == spans
    # The last answer ends with EOS, as that of an instruction; Phi-3's template writes <|end|>.
    same = len(example.tokens) - (kind == "phi3")
    assert list(example.tokens[:same]) == whole[:same] and len(whole) - same <= 1 + (kind == "phi3")


@each_kind
@each_template
def test_one_question_is_an_instruction(kind, name):
    plain_record = InstructionRecord("a", "Say it", "", "yes")
    assert encode(kind, name, record_of("Say it", "yes")) == encode(kind, name, plain_record)
    assert encode(kind, name, plain_record).earlier == ()


@each_kind
@each_template
def test_system_message_comes_first(kind, name):
    with_system, without = (encode(kind, name, record_of("Hi", "yes", system=s)) for s in ("Be kind to me", None))
    assert "Be kind to me" in decode(tokenizer_of(kind), with_system.tokens[: with_system.prompt_len])
    assert with_system.earlier == () and with_system.tokens != without.tokens


def test_template_that_ends_turns_with_another_token_is_refused():
    tokenizer = train_byte_bpe(["ab"] * 3, 260)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    said = "conversation a: the model's chat template does not keep message 2 as an answer of its own"
    with pytest.raises(UserError, match=re.escape(said)):
        encode_instructions([record_of("a", "b", "c", "d")], tokenizer, ChatTemplate(tokenizer), 999, "error")


def test_template_that_changes_earlier_answers_is_refused():
    """Such as one that drops what was thought."""
    tokenizer = train_byte_bpe(["ab"] * 3, 260)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'].split('!')[-1] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    template = ChatTemplate(tokenizer)
    ids, spans = encode_answers(tokenizer, template, [t.message for t in record_of("a", "b", "c", "d").history], ())
    assert [decode(tokenizer, ids[start:end]) for start, end in spans] == ["b"]
    with pytest.raises(UserError, match="does not keep message 2"):
        encode_instructions([record_of("a", "b!e", "c", "d")], tokenizer, template, 999, "error")


@each_kind
@each_template
def test_left_drops_the_oldest_question_and_its_answer(kind, name):
    texts = ["one " * 9, "yes", "two", "no", "three", "1"]
    whole, short = (encode(kind, name, record_of(*texts[n:], system="Be")) for n in (0, 2))
    room = len(whole.tokens) - 1
    assert encode(kind, name, record_of(*texts, system="Be"), room, "left") == short
    assert encode(kind, name, record_of(*texts, system="Be"), len(short.tokens), "left") == short
    last = encode(kind, name, record_of(*texts, system="Be"), len(short.tokens) - 1, "left")
    assert last == encode(kind, name, record_of(*texts[4:], system="Be"))
    tokenizer, template = tokenizer_of(kind), template_of(kind, name)
    (prompt,) = encode_prompts([record_of(*texts, system="Be")], tokenizer, template, whole.prompt_len - 3, "right")
    (kept,) = encode_prompts([record_of(*texts[2:], system="Be")], tokenizer, template, 9999, "error")
    assert (prompt.tokens, prompt.text) == (kept.tokens, kept.text)


@each_kind
@each_template
def test_right_cuts_the_end(kind, name):
    record = record_of("one", "yes, yes, yes", "two", "no")
    whole = encode(kind, name, record)
    (start, end), _ = spans_of(whole)
    cut = encode(kind, name, record, end - 2, "right")
    assert cut.tokens == whole.tokens[: end - 2] and cut.earlier == ((start, end - 2),)
    assert cut.num_learned == end - 2 - start
    with pytest.raises(UserError, match=f"the first prompt of conversation a has {start} tokens, --max-length is"):
        encode(kind, name, record, start, "right")
    inside = encode(kind, name, record, len(whole.tokens) - 1, "right")
    assert inside.earlier == whole.earlier and inside.num_learned == whole.num_learned - 1


@each_kind
@each_template
def test_rankings_and_prompts_have_the_history(kind, name):
    tokenizer, template = tokenizer_of(kind), template_of(kind, name)
    record = record_of("one", "yes", "two", "no")
    ranked = RankingRecord("a", "two", "", ("no", "yes"), (1, 2), record.history)
    example = encode(kind, name, record)
    (ranking,) = encode_rankings([ranked], tokenizer, template, 9999, "error")
    assert ranking.examples[0].tokens == example.tokens and ranking.examples[0].prompt_len == example.prompt_len
    assert ranking.examples[0].earlier == (), "only the ranked response is compared"
    (prompt,) = encode_prompts([record], tokenizer, template, 9999, "error")
    assert prompt.tokens == example.tokens[: example.prompt_len] and prompt.output == "no"
    assert prompt.text.index("one") < prompt.text.index("yes") < prompt.text.index("two")
