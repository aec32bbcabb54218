"""Helpers: the products of skinny_linear on vectors or on the matrix unit, whichever this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kernels.skinny_linear import cpu

no_unit = pytest.mark.skipif(not cpu.has_matrix_unit(), reason="no matrix unit here")
each_way = pytest.mark.parametrize("unit", [False, pytest.param(True, marks=no_unit)], ids=["vectors", "matrix unit"])


@contextmanager
def run_on(unit: bool) -> Iterator[None]:
    """On the matrix unit, or on vectors whether or not there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "has_matrix_unit", lambda: unit)
        yield
