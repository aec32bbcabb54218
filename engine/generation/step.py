"""One step of generation: run prompt chunks and decoding rows in one forward, then sample.

Shapes: T tokens of a step, S rows (sequences that decode), D model, V vocabulary, P pages of N positions, B pages per
row, C slots, R groups or chunks, E EOS ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.batch import PackedBatch, on_device
from engine.generation import huge_pages
from engine.generation.decode_rows import DecodeRows
from engine.generation.kv_cache import pages_for
from engine.generation.random_address import uniform
from engine.generation.sample import Sample
from engine.generation.sampling import Sampled, Sampling, sample
from engine.generation.scheduler import Chunk, Scheduler
from engine.generation.workspace import Workspace
from engine.models.attend import Attend, AttentionOptions
from engine.models.fused import logits
from engine.models.quantised import stored_weights

if TYPE_CHECKING:
    from engine.generation.stop_strings import StopMatcher

PREFILL_TOKENS = 512  # prompt tokens per step: more would delay decoding rows, fewer would waste the matrix units


class StepEngine:
    """Runs one step at a time: prompt chunks and decoding rows in one forward."""

    def __init__(
        self,
        model,
        scheduler: Scheduler,
        workspace: Workspace,
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
        self.cache, self.device = workspace.cache, weight.device
        huge_pages.collapse(w for _, w in stored_weights(model))
        self.rows = DecodeRows(num_slots, max_len, pages_for(max_len, scheduler.page_size), self.device)
        self.eos_ids, self.new_matcher = eos_ids, new_matcher
        self.eos_ids_E = on_device(eos_ids, torch.int64, self.device)
        self.capture_layer = capture_layer
        self.trunk_PND = None if capture_layer is None else workspace.trunk_PND
        pages_a_row = pages_for(max_len, scheduler.page_size)
        self.logits_CV: Tensor | None = None
        if self.device.type == "cpu":  # written every step: new memory would be filled with zeros first, page by page
            self.logits_CV = torch.empty(num_slots, model.vocab_size)
            huge_pages.ask(self.logits_CV)
        self.recorded = workspace.recorded(model, num_slots, pages_a_row, capture_layer or 0)

    def step(self) -> tuple[int, int]:
        """Run and sample once. Returns the number of prompt tokens run and of cache positions read."""
        self.scheduler.admit()
        chunks = self.scheduler.chunks(PREFILL_TOKENS)
        decoding = len(self.rows)
        h_SD = None
        if not chunks and self.recorded and 0 < decoding <= self.recorded.inputs.max_rows:
            h_SD = self._decode()
        elif decoding or chunks:
            h_SD = self._forward(chunks)
        positions_read = self.rows.positions_read(self.scheduler.page_size)
        if started := self.scheduler.starts():
            self._copy_pages([s.copied for s in started if s.copied])
            self.rows.add(started, self.seed)
            if self.new_matcher:
                for one in started:
                    one.matcher = self.new_matcher()
            last_SD = torch.stack([s.prompt.last_hidden_D for s in started])
            h_SD = last_SD if h_SD is None else torch.cat([h_SD, last_SD])
        if len(self.rows):
            self._sample(h_SD)
        return sum(p.stop - p.start for p in chunks), positions_read

    def _decode(self) -> Tensor:
        """Run each row's last token through all layers by the recorded step: [S, D]."""
        rows, size, inputs = self.rows, self.scheduler.page_size, self.recorded.inputs
        num_rows = len(rows)
        width = pages_for(1 + int(rows.host_position_S.max()), size)
        h_SD = self.model.embed(PackedBatch.of_singles(rows.tokens_S(), rows.position_S))
        table_SB = rows.table_CB[rows.slot_S, :width]
        inputs.fill(h_SD, rows.position_S, table_SB, *rows.groups(size), rows.sharing)
        trunk_SD, h_SD = self.recorded.run(num_rows)
        if self.trunk_PND is not None:
            page_S, slot_S, _ = inputs.places
            self.trunk_PND[page_S[:num_rows], slot_S[:num_rows]] = trunk_SD
        return h_SD

    def _forward(self, chunks: list[Chunk]) -> Tensor:
        """Run each row's last token and the prompt chunks through all layers; return [S, D] of the rows.

        Keys, values and trunk outputs of the chunks go to their pages. Chunks that continue a prompt run with the rows,
        each token as its own row; chunks that start a prompt come after them, with attention inside the pack.
        """
        rows, size = self.rows, self.scheduler.page_size
        later, fresh = [p for p in chunks if p.start], [p for p in chunks if not p.start]
        ordered = later + fresh
        chunk_tokens = [t for p in ordered for t in p.prompt.tokens[p.start : p.stop]]
        chunk_positions = [i for p in ordered for i in range(p.start, p.stop)]
        tokens_T = torch.cat([rows.tokens_S(), on_device(chunk_tokens, torch.int64, self.device)])
        position_T = torch.cat([rows.position_S, on_device(chunk_positions, torch.int64, self.device)])
        singles = len(rows) + sum(p.stop - p.start for p in later)
        lengths = (1,) * singles + tuple(p.stop for p in fresh)
        bounds = on_device([0, *accumulate(lengths)], torch.int32, self.device)
        batch = PackedBatch(tokens_T, position_T, bounds, lengths)

        width = pages_for(1 + max([int(rows.host_position_S.max(initial=0)), *(p.stop - 1 for p in chunks)]), size)
        table_SB = rows.table_CB[rows.slot_S, :width]
        fresh_RB = self._tables(fresh, width)
        cu_groups, shared_R = rows.groups(size)
        if later:
            counts = [p.stop - p.start for p in later]
            table_SB = torch.cat([table_SB, self._spread(self._tables(later, width), counts)])
            ends = [len(rows) + end for end in accumulate(counts)]
            cu_groups = torch.cat([cu_groups, on_device(ends, torch.int32, self.device)])
            shared = [p.start // size * size for p in later]
            shared_R = torch.cat([shared_R, on_device(shared, torch.int32, self.device)])
        decode = self.cache.decode(table_SB, position_T[:singles], cu_groups, shared_R) if singles else None
        prefill = None
        if fresh:
            pack = PackedBatch.from_sequences([p.prompt.tokens[: p.stop] for p in fresh], self.device)
            prefill = self.cache.prefill(pack, fresh_RB)
        attend = _both(decode, prefill, singles)

        split = self.capture_layer or 0
        h_TD = self.model.run(self.model.embed(batch), batch, 0, split, attend)
        if self.trunk_PND is not None:
            table_TB = torch.cat([table_SB, self._spread(fresh_RB, [p.stop for p in fresh])])
            page_T = table_TB.gather(1, (position_T // size)[:, None])[:, 0].long()
            self.trunk_PND[page_T, position_T % size] = h_TD
        h_TD = self.model.run(h_TD, batch, split, self.model.num_layers, attend)
        for chunk, h_ND in zip(ordered, h_TD[len(rows) :].split([p.stop - p.start for p in ordered])):
            self._chunk_done(chunk, h_ND)
        return h_TD[: len(rows)]

    def _chunk_done(self, chunk: Chunk, h_ND: Tensor) -> None:
        """If this chunk ends the prompt, keep its last hidden state for sampling."""
        if chunk.stop == len(chunk.prompt.tokens):
            chunk.prompt.last_hidden_D = h_ND[-1].clone()

    def _tables(self, chunks: list[Chunk], width: int) -> Tensor:
        """Return int32 [chunks, width]: the prompts' pages, padded with the first."""
        tables = [[*p.prompt.pages[:width], *p.prompt.pages[:1] * (width - len(p.prompt.pages))] for p in chunks]
        return on_device(tables, torch.int32, self.device).reshape(len(chunks), width)

    def _spread(self, table_RB: Tensor, counts: Sequence[int]) -> Tensor:
        """Repeat each chunk's row so many times, one for each token. The host does not wait for the number of rows."""
        each = on_device(counts, torch.int64, self.device)
        return table_RB.repeat_interleave(each, 0, output_size=sum(counts))

    def _copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            source, target = zip(*pairs)
            self.cache.copy_pages(source, target)
            if self.trunk_PND is not None:
                self.trunk_PND[list(target)] = self.trunk_PND[list(source)]

    def _sample(self, h_SD: Tensor) -> None:
        """Sample the next token of each row."""
        out_SV = None if self.logits_CV is None else self.logits_CV[: len(h_SD)]
        chosen = self._choose(logits(self.model, h_SD, out_SV))
        self.rows.append(chosen.token_S, chosen.logprob_S, self.eos_ids_E)

    def _choose(self, logits_SV: Tensor) -> Sampled:
        rows = self.rows
        history_SN = rows.history_SN() if self.sampling.repetition_penalty != 1.0 else None
        uniform_S = uniform(rows.address_S, rows.position_S)
        return sample(logits_SV, self.sampling, uniform_S, history_SN, self._eos_masked_S(), self.eos_ids_E)

    def _eos_masked_S(self) -> Tensor | None:
        """Return bool [S], the rows whose EOS is masked; None if there are none."""
        masked = self.rows.host_position_S + 1 < self.rows.eos_masked_before_S
        return on_device(masked, torch.bool, self.device) if self.eos_ids and masked.any() else None

    def leave(self, read: bool) -> list[Sample]:
        """Remove complete rows and return their samples. Without `read`, only if a row is at its last position."""
        rows = self.rows
        full_S = rows.host_position_S >= rows.last_S
        if not (read or full_S.any()):
            return []
        if self.new_matcher:
            self._match()
        end_S = np.minimum(rows.ended_at_S.cpu().numpy(), rows.last_S)
        complete_S = rows.host_position_S >= end_S
        # The trunk's output of the last token exists after the next step.
        gone_S = complete_S if self.trunk_PND is None else complete_S & (rows.host_position_S > end_S)
        if not gone_S.any():
            return []
        left = [rows.samples[row] for row in np.flatnonzero(gone_S)]
        for row, done in zip(np.flatnonzero(gone_S), left):
            end = int(end_S[row])
            done.tokens, done.logprobs = rows.result(row, end)
            done.ended = done.stop is not None or done.tokens[-1] in self.eos_ids
            if self.trunk_PND is not None:
                done.trunk_ND = self.trunk_PND[done.pages].flatten(0, 1)[: end + 1].clone()
            self.scheduler.leave(done)
        rows.keep(~gone_S)
        return left

    def _match(self) -> None:
        """Feed new tokens to the matchers; end the rows that one of them stops."""
        rows = self.rows
        ended_S = np.minimum(rows.ended_at_S.cpu().numpy(), rows.last_S)
        for row, one in enumerate(rows.samples):
            if one.matcher is None:
                continue
            begin, stop_before = int(rows.read_S[row]), int(min(ended_S[row], rows.host_position_S[row])) + 1
            for position, token in enumerate(rows.token_CN[one.slot, begin:stop_before].tolist(), begin):
                if stop := one.matcher.feed([token]):
                    one.stop, one.matcher = stop, None
                    rows.ended_at_S[row] = position
                    break
            rows.read_S[row] = stop_before


def _both(decode: Attend | None, prefill: Attend | None, singles: int) -> Attend:
    """Attend the first `singles` rows by decode, the others by prefill."""
    if decode is None or prefill is None:
        attend = decode or prefill
        assert attend is not None
        return attend

    def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: AttentionOptions) -> Tensor:
        parts = zip((decode, prefill), *(x.tensor_split([singles]) for x in (q_THK, k_TGK, v_TGK)))
        return torch.cat([part(layer, q, k, v, options) for part, q, k, v in parts])

    return attend
