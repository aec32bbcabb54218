"""The steps of generation: pieces of prompts and the rows that decode, run in one forward and sampled.

Shapes: T tokens of a step, S rows (sequences that decode), D model, V vocabulary, P pages of N positions, E EOS ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.generation import huge_pages
from engine.generation.decode_graphs import DecodeGraphs
from engine.generation.decode_rows import DecodeRows
from engine.generation.decode_tape import DecodeTape
from engine.generation.kv_cache import KVCache, pages_for
from engine.generation.random_address import uniform
from engine.generation.sampling import Sampled, Sampling, sample
from engine.generation.scheduler import Admitted, Piece, Scheduler
from engine.models.attend import Attend
from engine.models.fused import logits

if TYPE_CHECKING:
    from engine.generation.stop_strings import Stop, StopMatcher

PREFILL_TOKENS = 512  # prompt tokens a step: more would hold up those that decode, fewer waste the matrix units


@dataclass(frozen=True)
class Response:
    """What came of a request. tokens holds the EOS where there is one; ended says that it, or a stop string, ended it.

    stop is where a stop string begins; tokens go on to the one that completes it. logprobs are of the sampled tokens,
    as the trainer's distribution has them; trunk_ND [prompt + response, D] is the output of the frozen layers at every
    position, when asked for.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    trunk_ND: Tensor | None
    stop: Stop | None = None

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The tokens before the EOS, whichever it is: those of the response's text."""
        return self.tokens[:-1] if self.ended and self.stop is None else self.tokens


class StepEngine:
    """One step at a time: pieces of prompts and the rows that decode, in one forward."""

    def __init__(
        self,
        model,
        scheduler: Scheduler,
        cache: KVCache,
        num_slots: int,
        max_len: int,
        capture_layer: int | None,
        sampling: Sampling,
        seed: int,
        eos_ids: Sequence[int],
        new_matcher: Callable[[], StopMatcher] | None,
    ):
        self.model, self.scheduler, self.sampling, self.seed = model, scheduler, sampling, seed
        weight = model.head_weight
        self.cache, self.device = cache, weight.device
        huge_pages.collapse(model.parameters())
        self.rows = DecodeRows(num_slots, max_len, pages_for(max_len, scheduler.page_size), self.device)
        self.eos_ids, self.new_matcher = eos_ids, new_matcher
        self.matchers: dict[int, StopMatcher] = {}  # by slot, of the rows that none has stopped
        self.stops: dict[int, Stop] = {}
        self.eos_ids_E = torch.tensor(eos_ids, dtype=torch.int64, device=self.device)
        self.capture_layer, self.trunk_PND = capture_layer, None
        if capture_layer is not None:  # pages as the cache's, so that a shared prompt's trunk is kept once
            shape = (cache.num_pages, cache.page_size, model.hidden_size)
            self.trunk_PND = torch.empty(shape, dtype=weight.dtype, device=self.device)
        pages_a_row = pages_for(max_len, scheduler.page_size)
        what = (model, self.cache, num_slots, pages_a_row, capture_layer or 0)
        self.recorded = DecodeGraphs.of(*what) or DecodeTape.of(*what)  # a decode step, where it can be recorded

    def step(self) -> tuple[int, int]:
        """Run and sample once. Returns how many prompt tokens ran, and how many cache positions the rows read."""
        self.scheduler.admit()
        pieces = self.scheduler.pieces(PREFILL_TOKENS)
        decoding = len(self.rows)
        h_SD = None
        if not pieces and self.recorded and 0 < decoding <= self.recorded.inputs.max_rows:
            h_SD = self._decode()
        elif decoding or pieces:
            h_SD = self._forward(pieces)
        positions_read = self.rows.positions_read(self.scheduler.page_size)
        if started := self.scheduler.starts():
            self._copy_pages([s.copied for s in started if s.copied])
            self.rows.add(started, self.seed)
            if self.new_matcher:
                self.matchers |= {s.slot: self.new_matcher() for s in started}
            last_SD = torch.stack([s.prompt.last_hidden_D for s in started])
            h_SD = last_SD if h_SD is None else torch.cat([h_SD, last_SD])
        if len(self.rows):
            self._sample(h_SD)
        return sum(p.stop - p.start for p in pieces), positions_read

    def _decode(self) -> Tensor:
        """Every row's last token through all layers, as recorded: [S, D]."""
        rows, size, inputs = self.rows, self.scheduler.page_size, self.recorded.inputs
        num_rows = len(rows)
        width = pages_for(1 + int(rows.host_position_S.max()), size)
        h_SD = self.model.embed(PackedBatch.of_singles(rows.tokens_S(), rows.position_S))
        inputs.fill(h_SD, rows.position_S, rows.table_CB[rows.slot_S, :width], *rows.groups(size))
        trunk_SD, h_SD = self.recorded.run(num_rows)
        if self.trunk_PND is not None:
            page_S, slot_S, _ = inputs.places
            self.trunk_PND[page_S[:num_rows], slot_S[:num_rows]] = trunk_SD
        return h_SD

    def _forward(self, pieces: list[Piece]) -> Tensor:
        """Every decoding row's last token and the pieces through all layers: [S, D] of the rows.

        The pieces' keys, values and trunk go to their pages. Prompts begun earlier ride with the rows, each token a row
        of its own; prompts run from their first token ride behind them, with attention inside the pack.
        """
        rows, size = self.rows, self.scheduler.page_size
        later, fresh = [p for p in pieces if p.start], [p for p in pieces if not p.start]
        ordered = later + fresh
        piece_tokens = torch.tensor([t for p in ordered for t in p.prompt.tokens[p.start : p.stop]], dtype=torch.int64)
        piece_positions = torch.tensor([i for p in ordered for i in range(p.start, p.stop)], dtype=torch.int64)
        tokens_T = torch.cat([rows.tokens_S(), piece_tokens.to(self.device)])
        position_T = torch.cat([rows.position_S, piece_positions.to(self.device)])
        singles = len(rows) + sum(p.stop - p.start for p in later)
        lengths = (1,) * singles + tuple(p.stop for p in fresh)
        bounds = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
        batch = PackedBatch(tokens_T, position_T, bounds.to(self.device), lengths)

        width = pages_for(1 + max([int(rows.host_position_S.max(initial=0)), *(p.stop - 1 for p in pieces)]), size)
        table_SB = rows.table_CB[rows.slot_S, :width]
        fresh_RB = self._tables(fresh, width)
        cu_groups, shared_R = rows.groups(size)
        if later:
            later_RB = self._tables(later, width)
            counts = torch.tensor([p.stop - p.start for p in later], device=self.device)
            table_SB = torch.cat([table_SB, later_RB.repeat_interleave(counts, 0)])
            cu_groups = torch.cat([cu_groups, len(rows) + counts.cumsum(0).to(torch.int32)])
            shared = torch.tensor([p.start // size * size for p in later], dtype=torch.int32, device=self.device)
            shared_R = torch.cat([shared_R, shared])
        decode = self.cache.decode(table_SB, position_T[:singles], cu_groups, shared_R) if singles else None
        prefill = None
        if fresh:
            pack = PackedBatch.from_sequences([p.prompt.tokens[: p.stop] for p in fresh], self.device)
            prefill = self.cache.prefill(pack, fresh_RB)
        attend = _both(decode, prefill, singles)

        split = self.capture_layer or 0
        h_TD = self.model.run(self.model.embed(batch), batch, 0, split, attend)
        if self.trunk_PND is not None:
            counts = torch.tensor([p.stop for p in fresh], dtype=torch.int64, device=self.device)
            table_TB = torch.cat([table_SB, fresh_RB.repeat_interleave(counts, 0)])
            page_T = table_TB.gather(1, (position_T // size)[:, None])[:, 0].long()
            self.trunk_PND[page_T, position_T % size] = h_TD
        h_TD = self.model.run(h_TD, batch, split, self.model.num_layers, attend)
        for piece, h_ND in zip(ordered, h_TD[len(rows) :].split([p.stop - p.start for p in ordered])):
            self._piece_ran(piece, h_ND)
        return h_TD[: len(rows)]

    def _piece_ran(self, piece: Piece, h_ND: Tensor) -> None:
        """What is kept of the last layer's output at a piece's positions: that at the prompt's last."""
        if piece.stop == len(piece.prompt.tokens):
            piece.prompt.last_hidden_D = h_ND[-1].clone()

    def _tables(self, pieces: list[Piece], width: int) -> Tensor:
        """int32 [pieces, width]: the prompts' pages, padded with the first."""
        tables = [[*p.prompt.pages[:width], *p.prompt.pages[:1] * (width - len(p.prompt.pages))] for p in pieces]
        return torch.tensor(tables, dtype=torch.int32, device=self.device).reshape(len(pieces), width)

    def _copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            source, target = zip(*pairs)
            self.cache.copy_pages(source, target)
            if self.trunk_PND is not None:
                self.trunk_PND[list(target)] = self.trunk_PND[list(source)]

    def _sample(self, h_SD: Tensor) -> None:
        """The next token of every row."""
        chosen = self._choose(logits(self.model, h_SD))
        self.rows.append(chosen.token_S, chosen.logprob_S, self.eos_ids_E)

    def _choose(self, logits_SV: Tensor) -> Sampled:
        rows = self.rows
        history_SN = rows.history_SN() if self.sampling.repetition_penalty != 1.0 else None
        uniform_S = uniform(rows.address_S, rows.position_S)
        return sample(logits_SV, self.sampling, uniform_S, history_SN, self._barred_S(), self.eos_ids_E)

    def _barred_S(self) -> Tensor | None:
        """bool [S]: rows that may not end yet, None when all may."""
        barred = self.rows.host_position_S + 1 < self.rows.barred_before_S
        return torch.from_numpy(barred).to(self.device) if self.eos_ids and barred.any() else None

    def leave(self, read: bool) -> list[tuple[Admitted, Response]]:
        """Take out the rows that are complete; `read` looks for EOS, otherwise only full ones are found."""
        rows = self.rows
        full_S = rows.host_position_S >= rows.last_S
        if not (read or full_S.any()):
            return []
        if self.matchers:
            self._match()
        end_S = np.minimum(rows.ended_at_S.cpu().numpy(), rows.last_S)
        complete_S = rows.host_position_S >= end_S
        # The trunk of the last token is there once a step has run it.
        gone_S = complete_S if self.trunk_PND is None else complete_S & (rows.host_position_S > end_S)
        if not gone_S.any():
            return []
        left = []
        for row in np.flatnonzero(gone_S):
            admitted, end = rows.samples[row], int(end_S[row])
            tokens, logprobs = rows.result(row, end)
            trunk_ND = None
            if self.trunk_PND is not None:
                trunk_ND = self.trunk_PND[admitted.pages].flatten(0, 1)[: end + 1].clone()
            self.matchers.pop(admitted.slot, None)
            stop = self.stops.pop(admitted.slot, None)
            ended = stop is not None or tokens[-1] in self.eos_ids
            left.append((admitted, Response(tokens, logprobs, ended, trunk_ND, stop)))
            self.scheduler.leave(admitted)
        rows.keep(~gone_S)
        return left

    def _match(self) -> None:
        """Show the matchers what is new, and end the rows that one of them stops."""
        rows = self.rows
        ended_S = np.minimum(rows.ended_at_S.cpu().numpy(), rows.last_S)
        for row, admitted in enumerate(rows.samples):
            matcher = self.matchers.get(admitted.slot)
            if matcher is None:
                continue
            begin, stop_before = int(rows.read_S[row]), int(min(ended_S[row], rows.host_position_S[row])) + 1
            for position, token in enumerate(rows.token_CN[admitted.slot, begin:stop_before].tolist(), begin):
                if stop := matcher.feed([token]):
                    self.stops[admitted.slot] = stop
                    del self.matchers[admitted.slot]
                    rows.ended_at_S[row] = position
                    break
            rows.read_S[row] = stop_before


def _both(decode: Attend | None, prefill: Attend | None, singles: int) -> Attend:
    """The first `singles` rows through decode, the others through prefill."""
    if decode is None or prefill is None:
        attend = decode or prefill
        assert attend is not None
        return attend

    def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, slopes_H: Tensor | None) -> Tensor:
        parts = zip((decode, prefill), *(x.tensor_split([singles]) for x in (q_THK, k_TGK, v_TGK)))
        return torch.cat([part(layer, q, k, v, slopes_H) for part, q, k, v in parts])

    return attend
