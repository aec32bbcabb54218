"""Encode records as prompts and responses, and check or cut their lengths before any work.

Only a record's own text is cut, never the template or BOS. `left` cuts the start and `right` the end of the input, then
of the instruction, which keeps at least one character. With a response (SFT, reward, DPO), `left` cuts the prompt
that way, and `right` cuts the end of the response, including EOS. A record that is still too long is a mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.base.errors import UserError
from engine.base.records import InstructionRecord, RankingRecord
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_instruction
from engine.text.templates import Template
from engine.text.tokenizer import encode_response

AnyTemplate: TypeAlias = Template | ChatTemplate


@dataclass(frozen=True)
class Example:
    """A sequence whose first prompt_len tokens are the prompt."""

    id: str
    tokens: tuple[int, ...]
    prompt_len: int

    @property
    def response_start(self) -> int:
        """Index of the first response token that is predicted: the first token of a sequence follows nothing."""
        return max(1, self.prompt_len)


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
    records: Iterable[InstructionRecord], tokenizer, template: AnyTemplate, max_length: int, truncate: str
) -> list[Example]:
    """Encode SFT examples of at most max_length tokens."""
    examples = []
    for record in records:
        response = encode_response(tokenizer, record.output)
        prompt = _prompt_beside(record, len(response), tokenizer, template, max_length, truncate)
        if prompt is not None:
            examples.append(_example(record.id, prompt, response, max_length))
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
        prompt = _prompt_beside(record, max(map(len, responses)), tokenizer, template, max_length, truncate)
        if prompt is not None:
            examples = tuple(_example(record.id, prompt, response, max_length) for response in responses)
            rankings.append(RankedExamples(record.id, examples, record.ranks))
    return _not_empty(rankings, max_length)


def encode_prompts(
    records: Iterable[InstructionRecord], tokenizer, template: AnyTemplate, max_prompt_length: int, truncate: str
) -> list[Prompt]:
    """Encode prompts of at most max_prompt_length tokens."""
    prompts = []
    for record in records:
        instruction, input, tokens = record.instruction, record.input, _prompt(record, tokenizer, template)
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
            instruction, input, tokens = cut
        prompts.append(Prompt(record.id, tuple(tokens), template.format(instruction, input), record.output))
    return _not_empty(prompts, max_prompt_length)


def _prompt(record: InstructionRecord | RankingRecord, tokenizer, template: AnyTemplate) -> list[int]:
    return encode_instruction(tokenizer, template, record.instruction, record.input)


def _prompt_beside(
    record: InstructionRecord | RankingRecord,
    response_len: int,
    tokenizer,
    template: AnyTemplate,
    max_length: int,
    truncate: str,
) -> list[int] | None:
    """Return the prompt for a response of response_len tokens; None if the record is dropped.

    With "right", the response is cut instead.
    """
    prompt = _prompt(record, tokenizer, template)
    if len(prompt) + response_len <= max_length:
        return prompt
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
        return cut[2]
    if len(prompt) >= max_length:
        raise UserError(
            f"the prompt of sequence {record.id} alone has {len(prompt)} tokens, --max-length is {max_length}: "
            "raise it or pass --truncate left or drop"
        )
    return prompt


def _cut(
    record: InstructionRecord | RankingRecord, tokenizer, template: AnyTemplate, room: int, side: str
) -> tuple[str, str, list[int]] | None:
    """Return (instruction, input, prompt) with as much of the record as fits `room` tokens; None if none fits."""

    def without(count: int) -> tuple[str, str, list[int]]:
        """Cut `count` characters, first from the input, then from the instruction."""
        of_input = min(count, len(record.input))
        instruction, input = (
            _shorter(record.instruction, count - of_input, side),
            _shorter(record.input, of_input, side),
        )
        return instruction, input, encode_instruction(tokenizer, template, instruction, input)

    too_few, enough = 0, max(len(record.input) + len(record.instruction) - 1, 0)
    best = without(enough)
    if len(best[2]) > room:
        return None
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        tried = without(count)
        if len(tried[2]) > room:
            too_few = count
        else:
            enough, best = count, tried
    return best


def _shorter(text: str, count: int, side: str) -> str:
    """Remove `count` characters from the start (left) or end (right) of a text."""
    return text[count:] if side == "left" else text[: len(text) - count]


def _example(id: str, prompt: Sequence[int], response: Sequence[int], max_length: int) -> Example:
    return Example(id, (*prompt, *response[: max_length - len(prompt)]), len(prompt))


def _not_empty(items: list, limit: int) -> list:
    if not items:
        raise UserError(f"no record is left: all were longer than {limit} tokens and dropped; raise --max-length")
    return items
