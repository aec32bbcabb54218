"""Benchmarks of datagen: API client, ROUGE-L filter, root verbs."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_result(result: Mapping[str, float]) -> None:
    """Print a line per number for people, then one line of JSON for programs."""
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:{width}}  {value:,}")
    print(json.dumps(result))
