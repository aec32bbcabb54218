"""The recorded launches, copies and waits of each case; `python -m tests.played.records` writes the table anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

TABLE = Path(__file__).with_name("records.json")
ABOUT = "Launches, copies and waits of each case on the played GPU. Written by: python -m tests.played.records"
WRITE = "WRITE_PLAYED_RECORDS"


def check(case: str, found: dict[str, int], where: str = "") -> None:
    """AssertionError if a number is above its record, with `where` it comes from; where asked, write the record."""
    table = json.loads(TABLE.read_text())["counts"] if TABLE.exists() else {}
    if os.environ.get(WRITE):
        table[case] = found
        lines = [f"  {json.dumps(name)}: {json.dumps(counts)}" for name, counts in sorted(table.items())]
        TABLE.write_text(f'{{"about": {json.dumps(ABOUT)},\n "counts": {{\n' + ",\n".join(lines) + "\n}}\n")
        return
    assert case in table, f"{case} has no record: run python -m tests.played.records"
    above = {kind: f"{n}, was {table[case][kind]}" for kind, n in found.items() if n > table[case][kind]}
    assert not above, (
        f"{case}: more than recorded: {above}. Lower it, or if it is right, run python -m tests.played.records and "
        f"commit {TABLE.name}. Now:\n{where}"
    )


if __name__ == "__main__":
    from tests.played.test_played import run

    TABLE.unlink(missing_ok=True)
    os.environ[WRITE] = "1"
    run("slow or not slow")
    print(f"{TABLE.name} is written: git diff shows what has changed")
