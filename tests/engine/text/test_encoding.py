"""--truncate cuts only the text of the record: BOS and the template stay whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.records import InstructionRecord, RankingRecord
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_instruction
from engine.text.encoding import encode_instructions, encode_prompts, encode_rankings
from engine.text.templates import TEMPLATES, Template
from engine.text.tokenizer import encode_response
from tests.engine.text.tokenizer_kinds import KINDS, tokenizer_of

LONG = "".join(f"{i} " for i in range(100, 160))
FRAMED = Template("[{instruction}|{input}]\n", "[{instruction}]\n", "framed")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_side = pytest.mark.parametrize("side", ["left", "right"])


def record(instruction, input="", output="yes"):
    return InstructionRecord("a", instruction, input, output)


def prompt_of(kind, template, rec, room, side):
    (prompt,) = encode_prompts([rec], tokenizer_of(kind), template, room, side)
    assert len(prompt.tokens) <= room
    return prompt


@each_kind
@each_side
@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_truncation_keeps_bos_and_template(kind, side, name):
    tokenizer = tokenizer_of(kind)
    template = ChatTemplate(tokenizer) if name == "chat" else TEMPLATES[name]
    whole = encode_instruction(tokenizer, template, LONG)
    short = encode_instruction(tokenizer, template, "1")
    prompt = prompt_of(kind, template, record(LONG), (len(whole) + len(short)) // 2, side)
    before, after = template.format("\0").split("\0")
    assert prompt.text.startswith(before) and prompt.text.endswith(after)
    kept = prompt.text[len(before) : len(prompt.text) - len(after)]
    assert 0 < len(kept) < len(LONG)
    # A chat template may strip the remaining text.
    assert kept.strip() and (LONG.strip().startswith(kept) if side == "right" else LONG.strip().endswith(kept.strip()))
    assert list(prompt.tokens) == encode_instruction(tokenizer, template, kept)
    assert (prompt.tokens[0] == tokenizer.bos_token_id) == (whole[0] == tokenizer.bos_token_id)


@each_side
def test_input_is_cut_before_instruction(side):
    rec, tokenizer = record("Say it: " + LONG, "abc " + LONG), tokenizer_of("llama2")

    def length(instruction, input):
        return len(encode_instruction(tokenizer, FRAMED, instruction, input))

    text = prompt_of("llama2", FRAMED, rec, length(rec.instruction, rec.input) - 9, side).text
    instruction, input = text.removeprefix("[").removesuffix("]\n").split("|")
    assert instruction == rec.instruction
    assert input and rec.input == (
        input + rec.input[len(input) :] if side == "right" else rec.input[: -len(input)] + input
    )

    text = prompt_of("llama2", FRAMED, rec, length(rec.instruction, ""), side).text
    assert text == FRAMED.format(rec.instruction), "without input the form without input is used"

    text = prompt_of("llama2", FRAMED, rec, length(rec.instruction, "") - 9, side).text
    rest = text.removeprefix("[").removesuffix("]\n")
    assert rest and (rec.instruction.startswith(rest) if side == "right" else rec.instruction.endswith(rest))


@each_kind
@settings(deadline=None, max_examples=25)
@given(
    instruction=st.text(st.sampled_from("ab 1é中"), min_size=1, max_size=40),
    input=st.text(st.sampled_from("ab 1é中\n"), max_size=40),
    room=st.integers(3, 60),
    side=st.sampled_from(["left", "right"]),
)
def test_cut_prompt_fits_and_fills_the_room(kind, instruction, input, room, side):
    tokenizer, rec = tokenizer_of(kind), record(instruction, input)
    whole = encode_instruction(tokenizer, FRAMED, instruction, input)
    try:
        prompt = prompt_of(kind, FRAMED, rec, room, side)
    except UserError as error:
        assert "leaves no room" in str(error)
        assert len(encode_instruction(tokenizer, FRAMED, instruction[-1] if side == "left" else instruction[0])) > room
        return
    if len(whole) <= room:
        assert list(prompt.tokens) == whole
    else:
        assert room - len(prompt.tokens) <= 12, "at most one character of many tokens is missing"


@each_kind
def test_with_response_left_cuts_prompt_and_right_cuts_response(kind):
    tokenizer = tokenizer_of(kind)
    rec = record(LONG, output=LONG)
    prompt, response = encode_instruction(tokenizer, FRAMED, LONG), encode_response(tokenizer, LONG)
    limit = len(prompt) + len(response) - 20

    (left,) = encode_instructions([rec], tokenizer, FRAMED, limit, "left")
    assert list(left.tokens[left.prompt_len :]) == response
    cut = prompt_of(kind, FRAMED, rec, limit - len(response), "left")
    assert left.tokens[: left.prompt_len] == cut.tokens
    assert cut.text.startswith("[") and cut.text.endswith(LONG[-20:] + "]\n")

    (right,) = encode_instructions([rec], tokenizer, FRAMED, limit, "right")
    assert list(right.tokens) == (prompt + response)[:limit]
    assert right.prompt_len == len(prompt)
    assert encode_instructions([record("x"), rec], tokenizer, FRAMED, limit, "drop")[0].prompt_len < 20


def test_responses_of_a_ranking_share_one_prompt():
    tokenizer = tokenizer_of("llama2")
    rec = RankingRecord("a", LONG, "", ("yes", "no " * 20, ""), (1, 2, 3))
    longest = len(encode_response(tokenizer, "no " * 20))
    limit = len(encode_instruction(tokenizer, FRAMED, LONG)) + longest - 10
    (ranking,) = encode_rankings([rec], tokenizer, FRAMED, limit, "left")
    assert len({e.tokens[: e.prompt_len] for e in ranking.examples}) == 1
    assert limit - 3 <= max(len(e.tokens) for e in ranking.examples) <= limit
    assert ranking.examples[0].tokens[0] == tokenizer.bos_token_id
    for example, text in zip(ranking.examples, rec.responses, strict=True):
        assert list(example.tokens[example.prompt_len :]) == encode_response(tokenizer, text)


@pytest.mark.parametrize(
    ("rec", "limit", "side", "said"),
    [
        (record("x", output=LONG), 30, "error", "sequence a has .* --max-length is 30: raise it or pass"),
        (record("x", output=LONG), 30, "left", "the response of sequence a alone has .* right or drop"),
        (record(LONG), 30, "right", "the prompt of sequence a alone has .* left or drop"),
        (record("x", output="1"), 5, "left", "the response of sequence a alone has .* with the template"),
    ],
)
def test_too_long_record_is_one_line(rec, limit, side, said):
    with pytest.raises(UserError, match=said):
        encode_instructions([rec], tokenizer_of("llama2"), FRAMED, limit, side)
