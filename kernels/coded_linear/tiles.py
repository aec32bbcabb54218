"""How coded_linear on CUDA cuts a product into programs, and the memory of their sums. Needs no Triton.

Nothing is tuned at run time: no timing, and no memory for it, while the cache fills the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

PROGRAMS = 512  # wanted at least: the inner dimension is cut into parts for them
PART = 512  # of the inner dimension: a smaller part is not worth a program


class Tiles(NamedTuple):
    """Rows, columns and inner dimension of a program's tile; warps, and loads under way at once."""

    M: int
    J: int
    K: int
    warps: int
    stages: int


# For up to so many rows; the last for more. By the bytes of x: products in float32 run on the CUDA cores. Not measured
# yet: kernels/coded_linear/bench.py times them on a GPU. No register spills on sm_80 and sm_90.
TILES = {
    2: {16: Tiles(16, 32, 128, 4, 4), 64: Tiles(64, 64, 64, 4, 4), 0: Tiles(128, 128, 64, 8, 3)},
    4: {16: Tiles(16, 32, 64, 4, 3), 64: Tiles(32, 32, 32, 4, 3), 0: Tiles(64, 64, 32, 8, 2)},
}


def tiles_for(rows: int, element_bytes: int) -> Tiles:
    """Return the tiles for so many rows."""
    table = TILES[element_bytes]
    return next((table[most] for most in (16, 64) if rows <= most), table[0])


def part_size(inner: int, tiles: int, K: int) -> int:
    """Return the inner dimension of each program, a multiple of K, when the output has so many tiles."""
    parts = max(1, min(PROGRAMS // tiles, inner // PART))
    return -(-inner // (parts * K)) * K


def sum_bytes(rows: int, inner: int, columns: int) -> int:
    """Return an upper bound of the bytes of float32 sums of parts, for up to so many rows."""
    largest = max(tiles.M * tiles.J for table in TILES.values() for tiles in table.values())
    return min(4 * rows * columns * (inner // PART), 4 * PROGRAMS * largest) if inner >= 2 * PART else 0
