"""Rewards for `--reward engine.reward_functions:NAME`: functions of (prompt, response) that need no model."""

from __future__ import annotations

import math
import zlib


def noise(prompt: str, response: str) -> float:
    """Return a number that carries no information about the response: the control of an experiment.

    A checksum of the text, uniform with mean 0 and standard deviation 1, like normalised scores of a reward model. What
    a policy seems to learn from it comes from drift and from the measure itself.
    """
    share = zlib.crc32(f"{prompt}\0{response}".encode()) / 2**32
    return (2 * share - 1) * math.sqrt(3)
