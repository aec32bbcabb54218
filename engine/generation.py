"""Batched generation with a key/value cache and slots refilled as sequences finish (continuous batching).

Shapes: T tokens, S sequences in flight, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.errors import UserError
from engine.kv_cache import SlotCache
from engine.random_address import address, uniform
from engine.sampling import Sampling, sample


@dataclass(frozen=True)
class Request:
    """One response to make. (prompt_id, sample_id) is its address in the random stream."""

    prompt: tuple[int, ...]
    prompt_id: int
    sample_id: int
    max_new_tokens: int


@dataclass(frozen=True)
class Response:
    """What came of a request. tokens holds the EOS where there is one.

    logprobs are of the sampled tokens, as the trainer's distribution has them; trunk_ND [prompt + response, D] is the
    output of the frozen layers at every position, when asked for.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    trunk_ND: Tensor | None


@dataclass
class _Flight:
    """A request in a slot, on the host's side."""

    index: int
    request: Request
    tokens: list[int]
    logprobs: list[float]
    done: bool = False


@torch.no_grad()
def generate(
    model,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    eos_id: int,
    num_slots: int = 128,
    capture_layer: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Response]:
    """A response to every request, in the order of the requests.

    At most num_slots run at once; a slot is refilled the step its sequence ends. With capture_layer, the input of that
    layer (the trunk's output) is kept for every token of prompt and response. on_progress(finished, new_tokens) is
    called once a step. A response depends on its request, the seed and the weights, not on its company.
    """
    responses: list[Response | None] = [None] * len(requests)
    for index, response in stream(model, requests, sampling, seed, eos_id, num_slots, capture_layer, on_progress):
        responses[index] = response
    return responses  # type: ignore[return-value]


@torch.no_grad()
def stream(
    model,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    eos_id: int,
    num_slots: int = 128,
    capture_layer: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Response]]:
    """As `generate`, handing out (index of the request, response) as soon as each is finished."""
    if not requests:
        return
    limit = model.max_length
    max_len = max(len(r.prompt) + r.max_new_tokens for r in requests)
    if limit is not None and max_len > limit:
        worst = max(range(len(requests)), key=lambda i: len(requests[i].prompt) + requests[i].max_new_tokens)
        raise UserError(
            f"request {worst} needs {max_len} positions, the model has {limit}: shorten the prompt or --max-new-tokens"
        )
    weight = model.head_weight
    engine = _Slots(model, min(num_slots, len(requests)), max_len, capture_layer, weight)
    waiting = list(reversed(range(len(requests))))
    finished = new_tokens = 0
    while waiting or engine.flights:
        fresh = []
        while waiting and len(engine.flights) + len(fresh) < engine.num_slots:
            index = waiting.pop()
            fresh.append(_Flight(index, requests[index], [], []))
        if fresh:
            new_tokens += engine.prefill(fresh, sampling, seed, eos_id)
        else:
            new_tokens += engine.decode(sampling, eos_id)
        for flight, trunk_ND in engine.leave():
            finished += 1
            ended = flight.tokens[-1] == eos_id
            yield flight.index, Response(tuple(flight.tokens), tuple(flight.logprobs), ended, trunk_ND)
        if on_progress:
            on_progress(finished, new_tokens)


class _Slots:
    """The device's side of the sequences in flight: slot s of every tensor is flights[s]."""

    def __init__(self, model, num_slots: int, max_len: int, capture_layer: int | None, weight_VD: Tensor):
        self.model, self.num_slots, self.weight_VD = model, num_slots, weight_VD
        device, dtype = weight_VD.device, weight_VD.dtype
        self.cache = SlotCache(model, num_slots, max_len, dtype, device)
        self.flights: list[_Flight] = []
        self.token_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.position_S = torch.zeros_like(self.token_S)  # where token_S stands, once it has been sampled
        self.address_S = torch.zeros_like(self.token_S)
        self.capture_layer = capture_layer
        self.trunk_SND = None
        if capture_layer is not None:
            self.trunk_SND = torch.zeros(num_slots, max_len, model.hidden_size, dtype=dtype, device=device)

    def _layers(self, batch: PackedBatch, attend, slot_T: Tensor, position_T: Tensor) -> Tensor:
        """All layers, stopping at the trunk's end to keep its output."""
        h_TD = self.model.embed(batch)
        split = self.capture_layer or 0
        h_TD = self.model.run(h_TD, batch, 0, split, attend)
        if self.trunk_SND is not None:
            self.trunk_SND[slot_T, position_T] = h_TD
        return self.model.run(h_TD, batch, split, self.model.num_layers, attend)

    def prefill(self, fresh: list[_Flight], sampling: Sampling, seed: int, eos_id: int) -> int:
        """Run whole prompts in one pack, in the free slots, and sample the first token of each; how many new tokens."""
        first, device = len(self.flights), self.weight_VD.device
        self.flights += fresh
        batch = PackedBatch.from_sequences([f.request.prompt for f in fresh], device)
        slot_T = batch.sequence_T + first
        h_TD = self._layers(batch, self.cache.prefill(batch, slot_T), slot_T, batch.positions_T)
        prompt_ids = torch.tensor([f.request.prompt_id for f in fresh], device=device)
        sample_ids = torch.tensor([f.request.sample_id for f in fresh], device=device)
        self.address_S[first : len(self.flights)] = address(seed, prompt_ids, sample_ids)
        self.position_S[first : len(self.flights)] = batch.positions_T[batch.last_S]
        return self._sample(h_TD[batch.last_S], slice(first, len(self.flights)), sampling, eos_id)

    def decode(self, sampling: Sampling, eos_id: int) -> int:
        """One step for every sequence in flight; how many new tokens came of it."""
        used = len(self.flights)
        position_S = self.position_S[:used]
        longest = max(len(f.request.prompt) + len(f.tokens) for f in self.flights)
        ones = torch.arange(used + 1, dtype=torch.int32, device=position_S.device)
        batch = PackedBatch(self.token_S[:used], position_S, ones, (1,) * used)
        slot_S = ones[:used].long()
        h_SD = self._layers(batch, self.cache.decode(position_S, longest), slot_S, position_S)
        return self._sample(h_SD, slice(0, used), sampling, eos_id)

    def _sample(self, h_SD: Tensor, slots: slice, sampling: Sampling, eos_id: int) -> int:
        logits_SV = self.model.norm(h_SD) @ self.weight_VD.T
        uniform_S = uniform(self.address_S[slots], self.position_S[slots])
        token_S, logprob_S, _ = sample(logits_SV, sampling, uniform_S)
        self.token_S[slots] = token_S
        self.position_S[slots] += 1
        new_tokens = 0
        for flight, token, logprob in zip(self.flights[slots], token_S.tolist(), logprob_S.tolist()):
            if len(flight.tokens) == flight.request.max_new_tokens or (flight.tokens and flight.tokens[-1] == eos_id):
                flight.done = True  # this step only took its last token through the trunk
                continue
            flight.tokens.append(token)
            flight.logprobs.append(logprob)
            new_tokens += 1
            complete = token == eos_id or len(flight.tokens) == flight.request.max_new_tokens
            flight.done = complete and self.trunk_SND is None
        return new_tokens

    def leave(self) -> list[tuple[_Flight, Tensor | None]]:
        """Take the finished sequences out of their slots, closing the gaps with the last ones."""
        left = []
        for slot in reversed([s for s, flight in enumerate(self.flights) if flight.done]):
            flight = self.flights[slot]
            length = len(flight.request.prompt) + len(flight.tokens)
            left.append((flight, None if self.trunk_SND is None else self.trunk_SND[slot, :length].clone()))
            last = len(self.flights) - 1
            if slot != last:
                moved = self.flights[last]
                length = len(moved.request.prompt) + len(moved.tokens)
                self.cache.move(last, slot, length)
                for x in (self.token_S, self.position_S, self.address_S):
                    x[slot] = x[last]
                if self.trunk_SND is not None:
                    self.trunk_SND[slot, :length] = self.trunk_SND[last, :length]
                self.flights[slot] = moved
            self.flights.pop()
        return left
