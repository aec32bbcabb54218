"""A weight in 8 or 4 bits: integer codes in groups of 32 along the inputs, one bfloat16 scale for each group.

Shapes: N outputs, I inputs, G groups of 32, J a code in its group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32


class Codes(NamedTuple):
    """codes int8 [N, 32 G], or uint8 [N, 16 G] with two codes of 4 bits a byte, the even input's in the low half;
    scales bfloat16 [N, G]. Codes past the inputs are 0. `dtype` is that of the values."""

    codes: Tensor
    scale_NG: Tensor
    inputs: int
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.inputs

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def bits(self) -> int:
        return 8 if self.codes.dtype == torch.int8 else 4

    def rows(self, which: slice | Tensor) -> Codes:
        """Return the codes of some outputs: a slice, or their numbers, int64 of any shape [...]."""
        return self._replace(codes=self.codes[which], scale_NG=self.scale_NG[which])

    def values(self) -> Tensor:
        """Return code * scale [N, I] (after `rows`, [..., I]), rounded to the dtype."""
        codes = self.codes
        if self.bits == 4:
            signed = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).to(torch.int8)
            codes = torch.where(signed > 7, signed - 16, signed)
        value_NGJ = codes.unflatten(-1, (-1, GROUP)).float() * self.scale_NG.float()[..., None]
        return value_NGJ.flatten(-2)[..., : self.inputs].to(self.dtype).contiguous()
