"""Records to tokens: prompts and responses encoded, their lengths checked or cut by rule before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.errors import UserError
from engine.prompts import Template
from engine.records import InstructionRecord, RankingRecord
from engine.tokenizer import encode_prompt, encode_response


@dataclass(frozen=True)
class Example:
    """One sequence: tokens, of which the first prompt_len are the prompt."""

    id: str
    tokens: tuple[int, ...]
    prompt_len: int


@dataclass(frozen=True)
class RankedExamples:
    """One prompt's K responses as K sequences, and their ranks (1 = best, equal = tie)."""

    id: str
    examples: tuple[Example, ...]
    ranks: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(e.tokens) for e in self.examples)


@dataclass(frozen=True)
class Prompt:
    """A prompt to roll out, and the text it came from."""

    id: str
    tokens: tuple[int, ...]
    text: str
    output: str  # the record's own answer, "" where there is none


def encode_instructions(
    records: Iterable[InstructionRecord], tokenizer, template: Template, max_length: int, truncate: str
) -> list[Example]:
    """SFT examples of at most max_length tokens."""
    examples = []
    for record in records:
        prompt = encode_prompt(tokenizer, template.format(record.instruction, record.input))
        response = encode_response(tokenizer, record.output)
        example = _fit(record.id, prompt, response, max_length, truncate)
        if example is not None:
            examples.append(example)
    return _not_empty(examples, max_length)


def encode_rankings(
    records: Iterable[RankingRecord], tokenizer, template: Template, max_length: int, truncate: str
) -> list[RankedExamples]:
    """Rankings whose sequences have at most max_length tokens each; a ranking is dropped whole or not at all."""
    rankings = []
    for record in records:
        prompt = encode_prompt(tokenizer, template.format(record.instruction, record.input))
        fitted = [
            _fit(record.id, prompt, encode_response(tokenizer, text), max_length, truncate) for text in record.responses
        ]
        if None not in fitted:
            rankings.append(RankedExamples(record.id, tuple(fitted), record.ranks))
    return _not_empty(rankings, max_length)


def encode_prompts(
    records: Iterable[InstructionRecord], tokenizer, template: Template, max_prompt_length: int, truncate: str
) -> list[Prompt]:
    """Prompts of at most max_prompt_length tokens, to generate from."""
    prompts = []
    for record in records:
        text = template.format(record.instruction, record.input)
        tokens = encode_prompt(tokenizer, text)
        if len(tokens) > max_prompt_length:
            if truncate == "drop":
                continue
            if truncate == "error":
                raise UserError(
                    f"prompt {record.id} has {len(tokens)} tokens, the limit is {max_prompt_length} (max length less "
                    "new tokens): raise --max-length or pass --truncate left, right or drop"
                )
            tokens = tokens[-max_prompt_length:] if truncate == "left" else tokens[:max_prompt_length]
        prompts.append(Prompt(record.id, tuple(tokens), text, record.output))
    return _not_empty(prompts, max_prompt_length)


def _fit(id: str, prompt: Sequence[int], response: Sequence[int], max_length: int, truncate: str) -> Example | None:
    """The two end to end, cut to max_length: "left" cuts the prompt's start, "right" the response's end."""
    excess = len(prompt) + len(response) - max_length
    if excess > 0:
        if truncate == "drop":
            return None
        if truncate == "error":
            raise UserError(
                f"sequence {id} has {len(prompt) + len(response)} tokens, --max-length is {max_length}: "
                "raise it or pass --truncate left, right or drop"
            )
        if truncate == "left":
            if excess >= len(prompt):
                raise UserError(
                    f"the response of sequence {id} alone has {len(response)} tokens, --max-length is {max_length}: "
                    "raise it or pass --truncate right or drop"
                )
            prompt = prompt[excess:]
        else:
            if excess >= len(response):
                raise UserError(
                    f"the prompt of sequence {id} alone has {len(prompt)} tokens, --max-length is {max_length}: "
                    "raise it or pass --truncate left or drop"
                )
            response = response[: len(response) - excess]
    return Example(id, (*prompt, *response), len(prompt))


def _not_empty(items: list, limit: int) -> list:
    if not items:
        raise UserError(f"no record is left: all were longer than {limit} tokens and dropped; raise --max-length")
    return items
