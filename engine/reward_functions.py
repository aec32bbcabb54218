"""Rewards for `--reward engine.reward_functions:NAME`: functions of (prompt, response) that need no model."""

from __future__ import annotations

import math
import zlib


def noise(prompt: str, response: str) -> float:
    """A number that says nothing about a response, the same whenever it comes again: the control of an experiment.

    From a checksum of the text, uniform with mean 0 and deviation 1, as the scores of a reward model are normalised.
    What a policy seems to learn from it is what drift and the measure itself do.
    """
    share = zlib.crc32(f"{prompt}\0{response}".encode()) / 2**32
    return (2 * share - 1) * math.sqrt(3)
