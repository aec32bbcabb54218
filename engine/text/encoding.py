"""Encode records as prompts and responses, and check or cut their lengths before any work.

Only a record's own text is cut, never the template or BOS. `left` cuts the start and `right` the end of the input, then
of the instruction, which keeps at least one character. With a response (SFT, reward, DPO), `left` cuts the prompt
that way, and `right` cuts the end of the response, including EOS. A record that is still too long is a mistake.

Of a conversation, the oldest question goes first, with its answer, then the next; the system message stays. In SFT,
where every answer of a conversation is learned, `right` cuts its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.base.errors import UserError
from engine.base.records import InstructionRecord, RankingRecord, Record
from engine.base.turns import USER, Turn
from engine.text.chat_template import ChatTemplate
from engine.text.chats import chat_text, encode_answers, encode_chat, encode_instruction
from engine.text.templates import Template
from engine.text.tokenizer import encode_response

AnyTemplate: TypeAlias = Template | ChatTemplate
AnyRecord: TypeAlias = InstructionRecord | RankingRecord


@dataclass(frozen=True)
class Example:
    """A sequence whose first prompt_len tokens are the prompt.

    earlier   of a conversation, from where to where each answer in the prompt stands, its end token included
    """

    id: str
    tokens: tuple[int, ...]
    prompt_len: int
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def response_start(self) -> int:
        """Index of the first response token that is predicted: the first token of a sequence follows nothing."""
        return max(1, self.prompt_len)

    @property
    def num_learned(self) -> int:
        """The number of tokens of all answers."""
        return len(self.tokens) - self.response_start + sum(end - start for start, end in self.earlier)


@dataclass(frozen=True)
class RankedExamples:
    """A prompt's K responses as K sequences, and their ranks (1 = best, equal = tie)."""

    id: str
    examples: tuple[Example, ...]
    ranks: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(e.tokens) for e in self.examples)


@dataclass(frozen=True)
class Prompt:
    """A prompt to generate from, and its text."""

    id: str
    tokens: tuple[int, ...]
    text: str
    output: str  # the record's answer, "" if it has none


def encode_instructions(
    records: Iterable[InstructionRecord],
    tokenizer,
    template: AnyTemplate,
    max_length: int,
    truncate: str,
    eos_ids: Sequence[int] = (),
) -> list[Example]:
    """Encode SFT examples of at most max_length tokens.

    `eos_ids` are the tokens that end a response, besides the tokenizer's EOS, as encode_answers needs them.
    """
    examples = []
    for record in records:
        response = encode_response(tokenizer, record.output)
        if record.history and truncate == "right":
            fitted = record, prompt_of(record, tokenizer, template)  # its end is cut, wherever that is
        else:
            fitted = _prompt_beside(record, len(response), tokenizer, template, max_length, truncate)
        if fitted is None:
            continue
        record, prompt = fitted
        earlier = _earlier(record, tokenizer, template, eos_ids) if record.history else []
        if (first := min([len(prompt), *(start for start, _ in earlier)])) >= max_length:
            raise UserError(
                f"the first prompt of conversation {record.id} has {first} tokens, --max-length is {max_length}: "
                "raise it or pass --truncate left or drop"
            )
        examples.append(_example(record.id, prompt, response, max_length, earlier))
    return _not_empty(examples, max_length)


def encode_rankings(
    records: Iterable[RankingRecord], tokenizer, template: AnyTemplate, max_length: int, truncate: str
) -> list[RankedExamples]:
    """Encode rankings with sequences of at most max_length tokens; a ranking is dropped as a whole.

    All responses of a ranking have the same prompt, cut for the longest response.
    """
    rankings = []
    for record in records:
        responses = [encode_response(tokenizer, text) for text in record.responses]
        fitted = _prompt_beside(record, max(map(len, responses)), tokenizer, template, max_length, truncate)
        if fitted is not None:
            prompt = fitted[1]
            examples = tuple(_example(record.id, prompt, response, max_length) for response in responses)
            rankings.append(RankedExamples(record.id, examples, record.ranks))
    return _not_empty(rankings, max_length)


def encode_prompts(
    records: Iterable[InstructionRecord], tokenizer, template: AnyTemplate, max_prompt_length: int, truncate: str
) -> list[Prompt]:
    """Encode prompts of at most max_prompt_length tokens."""
    prompts = []
    for record in records:
        tokens = prompt_of(record, tokenizer, template)
        if len(tokens) > max_prompt_length:
            if truncate == "drop":
                continue
            if truncate == "error":
                raise UserError(
                    f"prompt {record.id} has {len(tokens)} tokens, the limit is {max_prompt_length} (max length less "
                    "new tokens): raise --max-length or pass --truncate left, right or drop"
                )
            cut = _cut(record, tokenizer, template, max_prompt_length, truncate)
            if cut is None:
                raise UserError(
                    f"the template of prompt {record.id} leaves no room in {max_prompt_length} tokens (max length less "
                    "new tokens): raise --max-length or pass --truncate drop"
                )
            record, tokens = cut
        prompts.append(
            Prompt(record.id, tuple(tokens), prompt_text(record, template, tokenizer.eos_token), record.output)
        )
    return _not_empty(prompts, max_prompt_length)


def prompt_of(record: AnyRecord, tokenizer, template: AnyTemplate) -> list[int]:
    """Return the token ids of a record's prompt, of a conversation up to where its last answer begins."""
    if record.history:
        return encode_chat(tokenizer, template, _messages(record))
    return encode_instruction(tokenizer, template, record.instruction, record.input)


def prompt_text(record: AnyRecord, template: AnyTemplate, eos: str) -> str:
    """Return prompt_of as text; `eos` is the text of the tokenizer's EOS."""
    if record.history:
        return chat_text(template, _messages(record), eos)
    return template.format(record.instruction, record.input)


def _messages(record: AnyRecord) -> list[dict[str, str]]:
    return [turn.message for turn in (*record.history, Turn(USER, record.instruction))]


def _earlier(
    record: InstructionRecord, tokenizer, template: AnyTemplate, eos_ids: Sequence[int]
) -> list[tuple[int, int]]:
    """Return where the answers in a conversation's prompt stand."""
    try:
        return encode_answers(tokenizer, template, _messages(record), eos_ids)[1]
    except UserError as error:
        raise UserError(f"conversation {record.id}: {error}") from None


def _prompt_beside(
    record: Record,
    response_len: int,
    tokenizer,
    template: AnyTemplate,
    max_length: int,
    truncate: str,
) -> tuple[Record, list[int]] | None:
    """Return (record, prompt), cut for a response of response_len tokens; None if the record is dropped.

    With "right", the response is cut instead.
    """
    prompt = prompt_of(record, tokenizer, template)
    if len(prompt) + response_len <= max_length:
        return record, prompt
    if truncate == "drop":
        return None
    if truncate == "error":
        raise UserError(
            f"sequence {record.id} has {len(prompt) + response_len} tokens, --max-length is {max_length}: "
            "raise it or pass --truncate left, right or drop"
        )
    if truncate == "left":
        cut = _cut(record, tokenizer, template, max_length - response_len, truncate)
        if cut is None:
            raise UserError(
                f"the response of sequence {record.id} alone has {response_len} tokens, with the template that is too "
                f"many for --max-length {max_length}: raise it or pass --truncate right or drop"
            )
        return cut
    if len(prompt) >= max_length:
        raise UserError(
            f"the prompt of sequence {record.id} alone has {len(prompt)} tokens, --max-length is {max_length}: "
            "raise it or pass --truncate left or drop"
        )
    return record, prompt


def _cut(record: Record, tokenizer, template: AnyTemplate, room: int, side: str) -> tuple[Record, list[int]] | None:
    """Return (record, prompt) with as much of the record as fits `room` tokens; None if none fits."""
    while any(turn.role == USER for turn in record.history):
        first = next(i for i, turn in enumerate(record.history) if turn.role == USER)
        record = dataclasses.replace(record, history=(*record.history[:first], *record.history[first + 2 :]))
        if len(prompt := prompt_of(record, tokenizer, template)) <= room:
            return record, prompt

    def without(count: int) -> tuple[Record, list[int]]:
        """Cut `count` characters, first from the input, then from the instruction."""
        of_input = min(count, len(record.input))
        instruction, input = (
            _shorter(record.instruction, count - of_input, side),
            _shorter(record.input, of_input, side),
        )
        shorter = dataclasses.replace(record, instruction=instruction, input=input)
        return shorter, prompt_of(shorter, tokenizer, template)

    too_few, enough = 0, max(len(record.input) + len(record.instruction) - 1, 0)
    best = without(enough)
    if len(best[1]) > room:
        return None
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        tried = without(count)
        if len(tried[1]) > room:
            too_few = count
        else:
            enough, best = count, tried
    return best


def _shorter(text: str, count: int, side: str) -> str:
    """Remove `count` characters from the start (left) or end (right) of a text."""
    return text[count:] if side == "left" else text[: len(text) - count]


def _example(
    id: str,
    prompt: Sequence[int],
    response: Sequence[int],
    max_length: int,
    earlier: Sequence[tuple[int, int]] = (),
) -> Example:
    spans = tuple((max(1, start), min(end, max_length)) for start, end in earlier if start < max_length)
    return Example(id, (*prompt, *response)[:max_length], min(len(prompt), max_length), spans)


def _not_empty(items: list, limit: int) -> list:
    if not items:
        raise UserError(f"no record is left: all were longer than {limit} tokens and dropped; raise --max-length")
    return items
