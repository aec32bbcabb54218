"""Sample one rank's share of the prompts, yield responses as they finish, show progress."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

from tqdm import tqdm

from engine.base.errors import UserError
from engine.base.seeds import derive_seed
from engine.cli.console import Console
from engine.cli.interrupt import Interrupt
from engine.generation.generate import Request, Sample, stream
from engine.generation.shards import EOS, LENGTH, STOP, SavedResponse
from engine.generation.stop_strings import StopMatcher
from engine.generation.workspace import Workspace
from engine.packing import shard_of
from engine.settings import ResponseSettings, SampleSettings
from engine.text.tokenizer import decode

LINE_EVERY_S = 60.0  # between progress lines without a terminal


def share(requests: Sequence[Request], ranks: int) -> list[list[Request]]:
    """Return the requests of each rank: whole prompts in order, balanced by expected response length."""
    prompts: dict[int, list[Request]] = {}
    for request in requests:
        prompts.setdefault(request.prompt_id, []).append(request)
    groups = [prompts[i] for i in sorted(prompts)]
    lengths = [sum(r.expected_length for r in group) for group in groups]
    return [[r for at in shard_of(lengths, rank, ranks) for r in groups[at]] for rank in range(ranks)]


def sample(
    model,
    tokenizer,
    requests: Sequence[Request],
    how: ResponseSettings,
    settings: SampleSettings,
    eos_ids: Sequence[int],
    progress: Progress,
    interrupt: Interrupt,
) -> Iterator[SavedResponse]:
    """Yield each response when it finishes. Raise SystemExit after the step in which a signal arrived.

    UserError if a response has NaN or infinite log-probabilities.
    """

    def after_step(finished: int, new_tokens: int) -> None:
        progress.show(finished, new_tokens)
        interrupt.check()

    interrupt.check()
    for i, response in stream(
        model, requests, how.sampling, derive_seed(how.seed, "sample"), eos_ids, settings.slots,
        on_progress=after_step, workspace=Workspace(settings.cache_tokens),
        new_matcher=partial(StopMatcher, tokenizer, how.stop) if how.stop else None,
    ):  # fmt: skip
        if not all(map(math.isfinite, response.logprobs)):
            raise UserError(
                f"the probabilities of {settings.model} are NaN or infinite: its weights are damaged, "
                "or too large for --dtype"
            )
        yield finish(requests[i], response, tokenizer)


def finish(request: Request, response: Sample, tokenizer) -> SavedResponse:
    """Return the response to save; its text ends before EOS or the stop string."""
    address = (request.prompt_id, request.sample_id)
    if response.stop is not None:
        return SavedResponse(*address, response.stop.text, response.stop.num_tokens, STOP)
    text = decode(tokenizer, response.text_tokens)
    return SavedResponse(*address, text, len(response.tokens), EOS if response.ended else LENGTH)


class Progress:
    """Show responses, tokens per second and time left: a bar on a terminal, else a line per minute."""

    def __init__(self, console: Console, bar: tqdm):
        self._console, self._bar = console, bar
        self._began = self._said_at = time.monotonic()

    def show(self, finished: int, new_tokens: int) -> None:
        """Show the counts of this rank since its start."""
        now = time.monotonic()
        seconds = now - self._began
        rate = f"{new_tokens / seconds:,.0f} tokens/s"
        self._bar.set_postfix_str(rate, refresh=False)
        self._bar.update(finished - self._bar.n)
        if self._bar.disable and now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            left = tqdm.format_interval(seconds / finished * (self._bar.total - finished)) if finished else "unknown"
            self._console.say(f"  {finished:,} of {self._bar.total:,} responses, {rate}, time left {left}")
