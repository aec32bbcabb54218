"""Encodings: turn the texts of a context and its continuations into token ids, split by the rule of each protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerFast

from engine.text.tokenizer import encode_prompt, encode_response


@dataclass(frozen=True)
class Encoded:
    """The token ids of a context with its continuations.

    pairs    (context ids, continuation ids) for each continuation, uncut
    resplit  a token spans the border, so the continuation ids begin before the continuation's text
    """

    pairs: list[tuple[list[int], list[int]]]
    resplit: bool = False


# (blocks, continuations) -> Encoded. The blocks are the shots and then the question; a header is part of the first
# block. Concatenated, they are the context.
Encode = Callable[[Sequence[str], Sequence[str]], Encoded]
Encoder = Callable[[PreTrainedTokenizerFast], Encode]  # called once per tokenizer


def separate(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Tokenize context and continuation separately, without special tokens, as mlmm-evaluation does."""

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        context, *rest = _all_ids(tokenizer, ["".join(blocks), *continuations], add_special_tokens=False)
        return Encoded([(context, ids) for ids in rest])

    return encode


def joint_without_bos(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Tokenize context and continuation as one text without special tokens. Split after len(context ids) tokens."""

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        return _joint(tokenizer, "".join(blocks), continuations, add_special_tokens=False)

    return encode


def joint_with_special_tokens(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Like joint_without_bos, but add the tokenizer's special tokens (usually BOS).

    Add none if the text begins with BOS, or with EOS for a tokenizer without BOS. An empty context is `start_id`.
    """
    first = start_id(tokenizer)
    marker = tokenizer.decode(first)

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        context = "".join(blocks)
        if not context:
            all_ids = _all_ids(tokenizer, list(continuations), add_special_tokens=False)
            return Encoded([([first], ids[1:] if ids[:1] == [first] else ids) for ids in all_ids])
        return _joint(tokenizer, context, continuations, add_special_tokens=not context.startswith(marker))

    return encode


def prefix_checked(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Tokenize as strict does: each block on its own, the question's last line together with each continuation.

    Only the first block starts as a prompt (with BOS and dummy prefix, if the tokenizer adds them). So a block has the
    same ids in every prompt, and shared shots give one shared prefix of ids. If a token spans the border, the split
    moves back to the last token that the last line shares with all joint texts. So all continuations have the same
    context, and none is empty. A context without tokens is `start_id`.
    """
    first = start_id(tokenizer)
    cache: dict[tuple[str, bool], list[int]] = {}

    def ids_of(text: str, is_first: bool) -> list[int]:
        # encode_response appends EOS, which a prompt must not have.
        return encode_prompt(tokenizer, text) if is_first else encode_response(tokenizer, text)[:-1]

    def shot_ids(text: str, is_first: bool) -> list[int]:
        if (text, is_first) not in cache:
            cache[text, is_first] = ids_of(text, is_first)
        return cache[text, is_first]

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        *shots, question = blocks
        context = [token for number, shot in enumerate(shots) for token in shot_ids(shot, number == 0)]
        body, line_break, line = question.rpartition("\n")
        if line_break:
            context += ids_of(body + line_break, is_first=not shots)
        is_first = not shots and not line_break
        line_ids = ids_of(line, is_first)
        joint_ids = [ids_of(line + continuation, is_first) for continuation in continuations]
        split = min(_num_shared(line_ids, ids) for ids in joint_ids)
        context = context + line_ids[:split] or [first]
        return Encoded([(context, ids[split:]) for ids in joint_ids], resplit=split < len(line_ids))

    return encode


def start_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id that stands for an empty context: BOS, or EOS for a tokenizer without BOS."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _joint(
    tokenizer: PreTrainedTokenizerFast, context: str, continuations: Sequence[str], add_special_tokens: bool
) -> Encoded:
    # lm-eval moves white space from the end of the context to the continuation.
    texts = [context.rstrip(), *(context + continuation for continuation in continuations)]
    context_ids, *joint_ids = _all_ids(tokenizer, texts, add_special_tokens)
    return Encoded([(context_ids, ids[len(context_ids) :]) for ids in joint_ids])


def _all_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False).input_ids


def _num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
