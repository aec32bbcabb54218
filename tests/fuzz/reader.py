"""A fuzz target: a function that reads outside bytes, a valid file for it, and corrupted files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.corrupt import Inputs


class Reader(NamedTuple):
    """One kind of file and the function that reads it.

    source   the inputs, or a function that makes them, for valid files that take a while to make
    read     reads the file at a path; may raise only UserError
    file     name of the file in this reader's own folder
    prepare  makes the other files that this folder needs
    """

    source: Inputs | Callable[[], Inputs]
    read: Callable[[Path], object]
    file: str
    prepare: Callable[[Path], object] = lambda folder: None

    @property
    def inputs(self) -> Inputs:
        return self.source if isinstance(self.source, Inputs) else self.source()
