"""Encodings: context and continuations as text to token ids, as each protocol splits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerFast

from engine.text.tokenizer import encode_prompt, encode_response


@dataclass(frozen=True)
class Encoded:
    """A context with its continuations.

    pairs    (context ids, continuation ids) for each continuation, nothing cut
    resplit  continuations begin earlier than their text does, because a token spans the border
    """

    pairs: list[tuple[list[int], list[int]]]
    resplit: bool = False


# Made once a tokenizer. It takes the blocks of a context (header, shots, question: their texts laid end to end are the
# context) and the continuations.
Encode = Callable[[Sequence[str], Sequence[str]], Encoded]
Encoder = Callable[[PreTrainedTokenizerFast], Encode]


def apart(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Context and continuation tokenised apart, without special tokens: mlmm-evaluation's way."""

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        context, *rest = _all_ids(tokenizer, ["".join(blocks), *continuations], add_special_tokens=False)
        return Encoded([(context, ids) for ids in rest])

    return encode


def joint_without_bos(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Context and continuation tokenised as one text, cut where the context's own tokens end; no special tokens."""

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        return _joint(tokenizer, "".join(blocks), continuations, add_special_tokens=False)

    return encode


def joint_as_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """The same with the tokenizer's own special tokens (BOS where it adds one), unless the text begins with that."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    marker = tokenizer.decode(first)

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        context = "".join(blocks)
        return _joint(tokenizer, context, continuations, add_special_tokens=not context.startswith(marker))

    return encode


def prefix_checked(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """The strict way: blocks apart, and the question's last line and the continuation as one text, its split checked.

    The first block begins as a prompt does (BOS and dummy prefix as the tokenizer has them), the others go on. A block
    therefore has the same ids in every prompt, and fixed shots are one prefix of ids. Where the last line's own ids are
    not how the joint text begins, the split moves back to the last token that the line shares with all of its
    continuations: the same context for each of them, and no continuation without tokens.
    """
    known: dict[tuple[str, bool], list[int]] = {}

    def ids_of(text: str, is_first: bool) -> list[int]:
        # encode_response puts EOS behind the text, which is no part of a prompt.
        return encode_prompt(tokenizer, text) if is_first else encode_response(tokenizer, text)[:-1]

    def shot_ids(text: str, is_first: bool) -> list[int]:
        if (text, is_first) not in known:
            known[text, is_first] = ids_of(text, is_first)
        return known[text, is_first]

    def encode(blocks: Sequence[str], continuations: Sequence[str]) -> Encoded:
        *shots, question = blocks
        context = [token for number, shot in enumerate(shots) for token in shot_ids(shot, number == 0)]
        body, line_end, line = question.rpartition("\n")
        if line_end:
            context += ids_of(body + line_end, is_first=not shots)
        is_first = not shots and not line_end
        line_ids = ids_of(line, is_first)
        wholes = [ids_of(line + continuation, is_first) for continuation in continuations]
        cut = min(_num_shared(line_ids, whole) for whole in wholes)
        context += line_ids[:cut]
        return Encoded([(context, whole[cut:]) for whole in wholes], resplit=cut < len(line_ids))

    return encode


def _joint(
    tokenizer: PreTrainedTokenizerFast, context: str, continuations: Sequence[str], add_special_tokens: bool
) -> Encoded:
    # lm-eval's rule: white space at the end of the context belongs to the continuation.
    kept = context.rstrip()
    moved = context[len(kept) :]
    texts = [kept, *(kept + moved + continuation for continuation in continuations)]
    first, *wholes = _all_ids(tokenizer, texts, add_special_tokens)
    return Encoded([(first, whole[len(first) :]) for whole in wholes])


def _all_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False).input_ids


def _num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
