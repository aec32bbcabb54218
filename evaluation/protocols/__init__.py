"""Protocols: which shots come before a question and how its text becomes token ids, exactly and by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from engine.base.errors import UserError
from evaluation.protocols.draws import Draw, after_shuffle, by_document, in_file_order
from evaluation.protocols.encodings import Encoder, apart, joint_as_tokenizer, joint_without_bos, prefix_checked


@dataclass(frozen=True)
class Protocol:
    """One way of asking.

    draw        which questions in which order, each with its shots
    encode      context and continuations to token ids
    own_words   prompt words are in the language of the questions; otherwise they are English
    drops_shots a prompt that is too long loses whole shots, the first ones first; otherwise it is cut from the left
    average     what a task's score is the mean over: "documents", or "subjects" (each subject weighs the same)
    seed        of the draws, unless the user says another
    """

    name: str
    draw: Draw
    encode: Encoder
    seed: int
    own_words: bool = False
    drops_shots: bool = False
    average: str = "documents"


# okapi: mlmm-evaluation, with which the Okapi paper's tables were made (Lai et al. 2023), an early-2023 lm-eval. BOS is
#   never added, and a SentencePiece tokenizer gives each choice a word-start mark of its own.
# leaderboard-v1: the first Open LLM Leaderboard (2023-24): the same draws, joint tokenisation, still without BOS. Its
#   MMLU shots are the first of dev, as in the original implementation (lm-eval #497).
# lm-eval: lm-eval 0.4.13 on one GPU, BOS as the tokenizer adds it. English uses its arc_challenge, hellaswag, mmlu and
#   truthfulqa tasks, other languages its okapi tasks. Its merging of requests that share all tokens but the last is not
#   followed: it scores wrongly where two of them split at different places.
# strict: ours. Shots depend on the question's id and nothing else, BOS is the tokenizer's own convention, a text such
#   as "</s>" is text.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("okapi", after_shuffle, apart, seed=42),
        Protocol("leaderboard-v1", after_shuffle, joint_without_bos, seed=42, average="subjects"),
        Protocol("lm-eval", in_file_order, joint_as_tokenizer, seed=1234),
        Protocol("strict", by_document, prefix_checked, seed=0, own_words=True, drops_shots=True),
    )
}
DEFAULT_PROTOCOL = "strict"


def get_protocol(name: str) -> Protocol:
    """UserError, naming the nearest, for an unknown name."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    close = difflib.get_close_matches(name, PROTOCOLS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown --protocol {name!r}: {hint}valid ones are {', '.join(PROTOCOLS)}")
