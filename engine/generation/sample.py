"""One response from request to result: a single object that the scheduler, the rows and the caller share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from engine.generation.stop_strings import Stop, StopMatcher


@dataclass(frozen=True)
class Request:
    """A response to generate. (prompt_id, sample_id) is its address in the random stream.

    Requests with equal prompts that follow each other share the prompt's pages and its prefill. Before min_new_tokens
    the EOS is masked. expected_new_tokens is a guess for ordering and balancing, not a limit.
    """

    prompt: tuple[int, ...]
    prompt_id: int
    sample_id: int
    max_new_tokens: int
    min_new_tokens: int = 0
    expected_new_tokens: int | None = None

    @property
    def max_length(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    @property
    def expected_length(self) -> int:
        new_tokens = self.max_new_tokens if self.expected_new_tokens is None else self.expected_new_tokens
        return len(self.prompt) + new_tokens


@dataclass(eq=False)
class Sample:
    """A request and what becomes of it. Fields are filled in the order in which they stand here.

    Queued: `index` counts the requests of a scheduler. Admitted: a slot, and every page it may need; `copied` is (from,
    to) for a prompt's half-filled last page. Finished: `tokens` include the EOS if there is one; `ended` says that an
    EOS or a stop string ended the response; `logprobs` are of the sampled tokens, in the trainer's distribution;
    `trunk_ND` [prompt + response, D] is the output of the frozen layers, if asked for; `stop` is where a stop string
    begins (tokens go on to the one that completes it).
    """

    index: int
    request: Request
    prompt: SharedPrompt | None = None
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    copied: tuple[int, int] | None = None
    matcher: StopMatcher | None = None  # until it finds a stop string
    stop: Stop | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ended: bool = False
    trunk_ND: Tensor | None = None

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The tokens of the response's text: those before the EOS."""
        return self.tokens[:-1] if self.ended and self.stop is None else self.tokens


@dataclass(eq=False)
class SharedPrompt:
    """A prompt and the samples that begin with it."""

    tokens: tuple[int, ...]
    waiting: deque[Sample]  # not yet admitted
    shares: bool  # more than one sample
    pages: list[int] = field(default_factory=list)
    filled: int = 0  # positions whose keys and values are in the pages
    admitted: list[Sample] = field(default_factory=list)  # not yet started
    last_hidden_D: Tensor | None = None  # output of the last layer at the last token
    scores: list[Any] = field(default_factory=list)  # of the prompt's tokens but the first, if the engine scores them

    @property
    def is_filled(self) -> bool:
        return self.filled == len(self.tokens)
