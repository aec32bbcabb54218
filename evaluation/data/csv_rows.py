"""Read the rows of a CSV file as records, each with its first line: some sets are published so."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from engine.base.errors import UserError


def iterate_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over the rows below the header, each with its first line (from 1). An unnamed column is left out.

    UserError, with the line, for text that is not UTF-8, a row with more or fewer cells than the header, a name that
    the header has twice, a quotation mark that is not closed, or a file without rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise UserError(f"{path}:1: two columns are named {twice!r:.60}: rename one")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) != len(names):
                    raise UserError(
                        f"{path}:{line}: the row has {len(cells)} cells, the header {len(names)}: fix the row"
                    )
                yield line, {name: cell for name, cell in zip(names, cells) if name}
                line = reader.line_num + 1
            if line == 2 or not names:
                raise UserError(f"{path} holds no records: give a file with at least one")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} of a block is not UTF-8: save the file as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: no valid CSV ({error}): fix the file") from None
