"""Answer prompts greedily and return the share that match the known answers exactly."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext

from engine.cli.console import Console
from engine.distributed.world import World
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.packing import shard_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import decode
from engine.training.checkpoint import Checkpoints


def exact_match(
    model,
    tokenizer,
    eos_ids: Sequence[int],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    world: World,
    console: Console,
    slots: int = 128,
    checkpoints: Checkpoints | None = None,
) -> tuple[float, list[str]]:
    """Return the share of prompts whose greedy answer equals the record's, and the answers.

    Outer blanks and the Unicode form are ignored. An answer ends with one of eos_ids, after max_new_tokens, or at the
    model's maximum length. Prompts are sharded over the ranks by length; every rank gets the same result. With a
    finishing trainer's `checkpoints`, a signal ends it early.
    """
    mine = shard_of([len(prompt.tokens) for prompt in prompts], world.rank, world.size)

    def request(i: int) -> Request:
        prompt = prompts[i].tokens
        room = max_new_tokens if model.max_length is None else model.max_length - len(prompt)
        return Request(prompt, i, 0, min(max_new_tokens, room))

    requests = [request(i) for i in mine]

    with (
        checkpoints.part() if checkpoints else nullcontext(),
        console.bar(len(requests), "exact match", "answer") as bar,
    ):

        def progress(finished: int, _: int) -> None:
            if checkpoints:
                checkpoints.raise_if_signalled()
            bar.update(finished - bar.n)

        responses = generate(model, requests, Sampling(temperature=0.0), 0, eos_ids, slots, on_progress=progress)
    texts = [""] * len(prompts)
    for part in world.gather({i: decode(tokenizer, r.text_tokens) for i, r in zip(mine, responses)}):
        for i, text in part.items():
            texts[i] = text
    right = sum(canonical(text) == canonical(prompt.output) for text, prompt in zip(texts, prompts))
    return right / len(prompts), texts


def canonical(text: str) -> str:
    """Normalise an answer for comparison: NFC, without outer blanks."""
    return unicodedata.normalize("NFC", text).strip()
