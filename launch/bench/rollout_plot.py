"""Plot the steps of a rollout: decoding rows and step time over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import matplotlib

from engine.generation.generate import Step

matplotlib.use("Agg")  # draw to files, also on machines without a screen
from matplotlib import pyplot


def plot_steps(path: str, steps: Sequence[Step]) -> None:
    """Save the plot to `path`."""
    ends = list(accumulate(s.seconds for s in steps))
    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    upper.step(ends, [s.rows for s in steps], where="pre")
    upper.set_ylabel("decoding rows")
    lower.plot(ends, [1e3 * s.seconds for s in steps], ".", markersize=3)
    lower.set_ylabel("ms per step")
    lower.set_yscale("log")
    lower.set_xlabel("seconds")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
