"""The paged key/value cache: pages are allocated once and shared by sequences with the same beginning.

Shapes: L layers, P pages, G key/value heads, N positions per page, K head size, S sequences (rows), B pages per row,
R groups of neighbouring rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.batch import PackedBatch
from engine.generation import huge_pages
from engine.models.attend import Attend, AttentionOptions, CacheAttend, Pages
from kernels.attention import attention
from kernels.attention_decode import attention_decode, empty_pages, prepare, write_pages

PAGE_SIZE = 64


class PagePool:
    """Reference counts of pages, on the host. A page is free when its last owner has freed it."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(reversed(range(num_pages)))
        self._owners = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Allocate n pages with one owner each. Check num_free before."""
        assert 0 <= n <= len(self._free), f"{n} pages wanted, {len(self._free)} of {self.num_pages} are free"
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._owners[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to each of these allocated pages."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is free and cannot be shared"
            self._owners[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """Remove an owner from each of these pages; a page without owners is free."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is free already"
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)


def pages_for(num_positions: int, page_size: int = PAGE_SIZE) -> int:
    """Number of pages that hold num_positions."""
    return -(-num_positions // page_size)


def page_bytes(model, dtype: torch.dtype, page_size: int = PAGE_SIZE) -> int:
    """Bytes of one page: keys and values of page_size positions in every layer."""
    return 2 * model.num_layers * model.num_kv_heads * page_size * model.head_size * dtype.itemsize


def spare_pages(device: torch.device) -> int:
    """Number of pages without an owner: one on a GPU, where the blank rows of a CUDA graph write."""
    return int(device.type == "cuda")


class KVCache:
    """The pages of all layers and the spare page, allocated once, in the model's dtype and on its device.

    The caller tracks owners (PagePool). Free pages are never read.
    """

    def __init__(self, model, num_pages: int, page_size: int = PAGE_SIZE):
        self.num_pages, self.page_size = num_pages, page_size
        dtype, device = model.head_weight.dtype, model.head_weight.device
        spare = spare_pages(device)
        self.spare_page = num_pages if spare else None
        self.k_LPGNK, self.v_LPGNK = empty_pages(
            num_pages + spare, model.num_kv_heads, page_size, model.head_size, dtype, device, (model.num_layers,)
        )
        huge_pages.ask(self.k_LPGNK)  # the values are in the same memory

    def copy_pages(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy pages in every layer: the half-filled last page of a prompt, once for each sample."""
        for x in (self.k_LPGNK, self.v_LPGNK):
            for old, new in zip(source, target, strict=True):
                x[:, new].copy_(x[:, old])

    def prefill(self, batch: PackedBatch, table_SB: Tensor) -> Attend:
        """Return attention for whole sequences: causal within the pack; keys and values go to each sequence's pages.

        table_SB int32 [S, B]: position j of sequence s is slot j % N of page table_SB[s, j // N].
        """
        page_T = table_SB[batch.sequence_T, batch.positions_T // self.page_size].long()
        slot_T = batch.positions_T % self.page_size

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: AttentionOptions) -> Tensor:
            write_pages(k_TGK, v_TGK, self.k_LPGNK[layer], self.v_LPGNK[layer], page_T, slot_T)
            return attention(q_THK, k_TGK, v_TGK, batch.cu_seqlens, batch.lengths, *options)

        return attend

    def decode(
        self,
        table_SB: Tensor,
        position_S: Tensor,
        cu_groups: Tensor | None = None,
        shared_R: Tensor | None = None,
    ) -> CacheAttend:
        """Return attention for one new token per row, at the given positions (integers [S]), over its pages.

        A row is the next token of a sequence, or one of several tokens of a prompt. Those have the same pages and
        consecutive positions, and see each other because all rows are written before any is read; so decoding rows and
        prompt chunks share a step. cu_groups and shared_R as in `attention_decode`: neighbouring rows whose first
        shared_R positions (whole pages) are the same pages.
        """
        return self.decode_at(table_SB, *places(table_SB, position_S, self.page_size), cu_groups, shared_R)

    def decode_at(
        self,
        table_SB: Tensor,
        page_S: Tensor,
        slot_S: Tensor,
        length_S: Tensor,
        cu_groups: Tensor | None,
        shared_R: Tensor | None,
    ) -> CacheAttend:
        """`decode` with a given slot mapping."""
        prepared = prepare(len(table_SB), self.k_LPGNK.shape[2], table_SB.device, cu_groups)

        def pages(layer: int) -> Pages:
            return Pages(self.k_LPGNK[layer], self.v_LPGNK[layer], page_S, slot_S)

        def read(layer: int, q_SHK: Tensor, options: AttentionOptions) -> Tensor:
            where = (self.k_LPGNK[layer], self.v_LPGNK[layer], table_SB, length_S)
            return attention_decode(q_SHK, *where, *options, cu_groups, shared_R, prepared)

        return CacheAttend(pages, read)


def places(table_SB: Tensor, position_S: Tensor, page_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slot mapping (page_S, slot_S, int64) of each row's token, and length_S (int32), how far it sees."""
    page_S = table_SB.gather(1, (position_S // page_size).long()[:, None])[:, 0].long()
    return page_S, position_S.long() % page_size, (position_S + 1).to(torch.int32)
