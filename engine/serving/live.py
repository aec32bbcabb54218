"""The live engine: requests join and leave a running batch, each with its own sampling settings.

Shapes: T tokens of a chunk, S decoding rows, V vocabulary, D model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generation.kv_cache import PAGE_SIZE
from engine.generation.random_address import uniform
from engine.generation.sample import Request
from engine.generation.sampling import Sampled, Sampling, sample
from engine.generation.scheduler import Chunk, Scheduler
from engine.generation.step import StepEngine
from engine.generation.workspace import Workspace
from engine.models.fused import logits
from engine.serving.token_scores import TokenScore, score_tokens

STOP, LENGTH, BROKEN = "stop", "length", "broken"  # how a response ends; broken: its probabilities are NaN
_LOGITS_AT_ONCE = 1 << 24  # float32 numbers: 64 MiB


@dataclass(frozen=True)
class LiveRequest(Request):
    """A request with its own settings. prompt_id is its seed.

    num_top, unless None, asks for each token's log-probability and those of the num_top likeliest tokens; score_prompt
    asks for those of the prompt's tokens, too.
    """

    sampling: Sampling = Sampling()
    num_top: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True)
class Event:
    """One new token of a request, and `end` if it is the last.

    score is set if log-probabilities were asked for; prompt_scores (all prompt tokens but the first) come with the
    first token.
    """

    index: int
    token: int
    score: TokenScore | None = None
    prompt_scores: Sequence[TokenScore] = ()
    end: str | None = None


class LiveEngine(StepEngine):
    """Endless generation: `add` requests, `advance` one step, `cancel`; all from one thread.

    max_length limits prompt plus response, in tokens. Log-probabilities are at temperature 1.
    """

    def __init__(self, model, num_slots: int, num_pages: int, max_length: int, eos_ids: Sequence[int], seed: int = 0):
        scheduler, workspace = Scheduler([], "given", num_slots, num_pages, PAGE_SIZE), Workspace()
        workspace.allocate(model, num_pages)
        # The last token is sampled but never run, so one fits after a prompt of the full length.
        what = (model, scheduler, workspace, num_slots, max_length + 1)
        super().__init__(*what, None, Sampling(), seed, eos_ids, None)
        self.max_length = max_length
        self.prompt_tokens_run = 0
        self._open: set[int] = set()
        self._given_up: set[int] = set()
        self._scores: dict[int, TokenScore] = {}  # of this step, by row

    @property
    def is_idle(self) -> bool:
        """Return whether `advance` has nothing to do."""
        return not (self._open or self._given_up)

    def add(self, requests: Sequence[LiveRequest]) -> range:
        """Queue requests and return their indices. UserError, and none is queued, if one can never fit."""
        indices = self.scheduler.add(requests)
        self._open |= set(indices)
        return indices

    def cancel(self, index: int) -> None:
        """Stop the events of a request. Its slot and pages are freed at the next step, or once it has started."""
        if index in self._open:
            self._open.remove(index)
            if not self.scheduler.cancel(index):
                self._given_up.add(index)

    @torch.no_grad()
    def advance(self) -> list[Event]:
        """Run one step; return an event for each new token."""
        self._scores.clear()
        if self._given_up:
            self._let_go()
        self.prompt_tokens_run += self.step()[0]
        rows = self.rows
        logprobs = rows.logprob_CN[rows.slot_S, rows.position_S].tolist()
        events = [
            self._event(row, token, logprob)
            for row, (token, logprob) in enumerate(zip(rows.tokens_S().tolist(), logprobs))
            if rows.samples[row].index in self._open
        ]
        for event in events:
            if event.end:
                self._open.remove(event.index)
                if event.end == BROKEN:
                    self._given_up.add(event.index)
        self._let_go()
        return events

    def _event(self, row: int, token: int, logprob: float) -> Event:
        rows, one = self.rows, self.rows.samples[row]
        position, score = rows.host_position_S[row], self._scores.get(row)
        is_first, asked = position == rows.first_S[row], one.request.score_prompt
        prompt_scores = one.prompt.scores if is_first and asked else ()
        checked = [logprob, *(s.logprob for s in prompt_scores)]
        if any(map(math.isnan, checked)):
            return Event(one.index, token, end=BROKEN)
        end = STOP if token in self.eos_ids else LENGTH if position >= rows.last_S[row] else None
        return Event(one.index, token, score, prompt_scores, end)

    def _let_go(self) -> None:
        """Free the slots and pages of complete and cancelled rows."""
        rows = self.rows
        for row, one in enumerate(rows.samples):
            if one.index in self._given_up:
                self._given_up.remove(one.index)
                rows.ended_at_S[row] = rows.position_S[row]
        self.leave(True)

    def _choose(self, logits_SV: Tensor) -> Sampled:
        """Sample one token per row, rows with equal settings together."""
        requests = [one.request for one in self.rows.samples]
        by_sampling: dict[Sampling, list[int]] = {}
        for row, request in enumerate(requests):
            by_sampling.setdefault(request.sampling, []).append(row)
        uniform_S = uniform(self.rows.address_S, self.rows.position_S)
        history_SN = self.rows.history_SN() if any(how.repetition_penalty != 1 for how in by_sampling) else None
        eos_masked_S = self._eos_masked_S()
        if len(by_sampling) == 1:
            chosen = sample(logits_SV, *by_sampling, uniform_S, history_SN, eos_masked_S, self.eos_ids_E)
        else:
            parts = []
            for how, rows in by_sampling.items():
                at = torch.tensor(rows, device=self.device)
                own = [x if x is None else x[at] for x in (uniform_S, history_SN, eos_masked_S)]
                parts.append(sample(logits_SV[at], how, *own, self.eos_ids_E))
            order = torch.tensor([row for rows in by_sampling.values() for row in rows], device=self.device).argsort()
            chosen = Sampled(*(torch.cat(columns)[order] for columns in zip(*parts)))
        asked = [row for row, request in enumerate(requests) if request.num_top is not None]
        if asked:
            at, num_top = torch.tensor(asked, device=self.device), [requests[row].num_top for row in asked]
            self._scores = dict(zip(asked, score_tokens(logits_SV[at], chosen.token_S[at], num_top)))
        return chosen

    def _chunk_done(self, chunk: Chunk, h_ND: Tensor) -> None:
        super()._chunk_done(chunk, h_ND)
        request, prompt = chunk.prompt.admitted[0].request, chunk.prompt
        targets = prompt.tokens[chunk.start + 1 : chunk.stop + 1]
        if not (request.score_prompt and targets):
            return
        target_N = torch.tensor(targets, device=self.device)
        at_once = max(_LOGITS_AT_ONCE // self.model.head_weight.shape[0], 1)
        for h_BD, target_B in zip(h_ND[: len(target_N)].split(at_once), target_N.split(at_once)):
            logits_BV = logits(self.model, h_BD)
            prompt.scores += score_tokens(logits_BV, target_B, [request.num_top or 0] * len(target_B))
