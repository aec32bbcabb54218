"""Protocols by name: each fixes the order of questions, their shots, and how text becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.base.nearest import nearest_hint
from evaluation.protocols.draws import Draw, after_shuffle, by_document, in_file_order
from evaluation.protocols.encodings import (
    Encoder,
    joint_with_special_tokens,
    joint_without_bos,
    prefix_checked,
    separate,
)


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    draw         yields the questions in order, each with its shots
    encode       makes the function that turns context and continuations into token ids
    seed         seed of the draws, unless --seed sets another
    own_words    write prompt words in the language of the questions, not in English
    drops_shots  shorten a long prompt by whole shots, from the first on; otherwise cut its ids from the left
    average      a task's score is the mean over "documents", or over "subjects" with equal weights
    """

    name: str
    draw: Draw
    encode: Encoder
    seed: int
    own_words: bool = False
    drops_shots: bool = False
    average: str = "documents"


# okapi: mlmm-evaluation, an early-2023 lm-eval that made the tables of the Okapi paper (Lai et al. 2023). It never adds
#   BOS. With a SentencePiece tokenizer, each choice starts with a word-start token of its own.
# leaderboard-v1: the first Open LLM Leaderboard (2023-24). The same draws; context and choice are tokenized together,
#   still without BOS. MMLU shots are the first ones of dev, as in the original implementation (lm-eval #497).
# lm-eval: lm-eval 0.4.13 on one GPU, with BOS if the tokenizer adds it. English uses its tasks arc_challenge,
#   hellaswag, mmlu and truthfulqa, other languages its okapi tasks. One difference: lm-eval merges requests that share
#   all tokens except the last, which gives wrong scores if two of them split at different positions. We do not merge.
# strict: ours. Shots depend on the question's id only, BOS follows the tokenizer, and a text such as "</s>" stays text.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("okapi", after_shuffle, separate, seed=42),
        Protocol("leaderboard-v1", after_shuffle, joint_without_bos, seed=42, average="subjects"),
        Protocol("lm-eval", in_file_order, joint_with_special_tokens, seed=1234),
        Protocol("strict", by_document, prefix_checked, seed=0, own_words=True, drops_shots=True),
    )
}
DEFAULT_PROTOCOL = "strict"


def get_protocol(name: str) -> Protocol:
    """Return the protocol of this name. UserError for an unknown name, with the nearest known one."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = nearest_hint(name, PROTOCOLS)
    raise UserError(f"unknown --protocol {name!r}: {hint}choose from {', '.join(PROTOCOLS)}")
