"""segment_scan in Triton against its loop: segments within, across and many times the block of columns."""

import pytest
import torch

from kernels.segment_scan import segment_scan_reference
from kernels.segment_scan.fused import segment_scan_triton


@pytest.mark.parametrize("lengths", [[3, 1, 40, 2, 17], [16, 16, 1], [100], [1], []])
@pytest.mark.parametrize("decay", [0.0, 0.95, 1.0])
def test_equals_the_loop(lengths, decay):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    x = torch.randn(len(segment), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = segment_scan_triton(x, segment, decay, max(lengths, default=0))
    torch.testing.assert_close(out, segment_scan_reference(x, segment, decay))


def test_a_segment_ends_where_the_block_does():
    """16 columns a block: what lies behind the border belongs to another segment, and to nobody's sum."""
    x, segment = torch.ones(32), torch.arange(2).repeat_interleave(16)
    assert segment_scan_triton(x, segment, 1.0, 16).tolist() == [*range(16, 0, -1)] * 2
