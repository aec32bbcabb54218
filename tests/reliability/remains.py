"""Compare the output files of two runs that must be equal, except for times: one interrupted, one not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.engine.training.trainers import without_clock


def outputs(run: Path) -> dict[str, Any]:
    """Return metrics, samples, result, and hashes of the model and of the last checkpoint's masters and moments."""
    last = max((run / "checkpoints").glob("step-*"))
    weights = [last / "trained.safetensors", *sorted((run / "model").glob("*.safetensors"))]
    result = json.loads((run / "result.json").read_text())
    samples = run / "samples.jsonl"
    return {
        "metrics": [without_clock(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "samples": samples.read_text() if samples.exists() else "",
        "result": {name: value for name, value in result.items() if name != "seconds"},
        "last": last.name,
        **{file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights},
    }


def assert_same(run: Path, uninterrupted: Path) -> None:
    """Assert that the two runs have the same outputs."""
    ours, theirs = outputs(run), outputs(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == value, (run.name, name)
