"""Golden traces: ten steps of each trainer in each family give the numbers kept in tests/golden.

CPUs sum in different orders, so numbers are compared to 1e-4 of their size (1e-5 near zero), not to the bit: with torch
held to SSE or AVX2 on a CPU that has AVX-512, the largest difference was a sixth of what is allowed. PPO samples from
its own probabilities and clips: a rounding error that moves one sampled token, or carries one ratio over the clip's
edge, would show as a large difference. On a new kind of CPU that has a chance of less than one in a hundred.

`python -m tests.golden.regenerate` makes the traces anew.
"""

import pytest

from tests.golden.regenerate import FOLDER, TRACES, make_trace, numbers, read_trace


@pytest.mark.parametrize("stage, family", TRACES)
def test_ten_steps_equal_the_golden_trace(stage, family):
    golden, trace = dict(numbers(read_trace(stage, family))), dict(numbers(make_trace(stage, family)))
    assert trace.keys() == golden.keys()
    assert len(golden) > 50
    wrong = {
        where: (value, golden[where])
        for where, value in trace.items()
        if value != pytest.approx(golden[where], rel=1e-4, abs=1e-5)
    }
    assert not wrong, f"{len(wrong)} of {len(golden)} numbers: {dict(list(wrong.items())[:5])}"


def test_every_file_is_compared():
    assert {path.name for path in FOLDER.glob("*.json")} == {f"{stage}_{family}.json" for stage, family in TRACES}
