"""What is fuzzed: a reader of outside bytes, a good file for it, and the bytes it is given instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.spoil import Inputs


class Reader(NamedTuple):
    """One kind of file and who reads it.

    source   the inputs, or what makes them: good files that take a while are made when they are needed
    read     given its path; raises nothing but UserError, or returns what is documented for files that are spoilt
    file     its name under a folder that is this reader's own
    prepare  makes what else must lie in that folder
    """

    source: Inputs | Callable[[], Inputs]
    read: Callable[[Path], object]
    file: str
    prepare: Callable[[Path], object] = lambda folder: None

    @property
    def inputs(self) -> Inputs:
        return self.source if isinstance(self.source, Inputs) else self.source()
