"""segment_scan against its loop, and by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.segment_scan import segment_scan, segment_scan_reference


def test_by_hand():
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    segment = torch.tensor([0, 0, 0, 1, 1])
    expected = torch.tensor([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16])
    assert torch.equal(segment_scan(x, segment, 0.5, 3), expected)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=6), st.sampled_from([0.0, 0.95, 1.0]))
def test_equals_the_loop(lengths, decay):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    x = torch.randn(len(segment), dtype=torch.float64)
    out = segment_scan(x, segment, decay, max(lengths, default=0))
    torch.testing.assert_close(out, segment_scan_reference(x, segment, decay))
