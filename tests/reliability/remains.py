"""What a finished run leaves behind, as far as it must not depend on interruptions: everything but the clock."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.engine.training.trainers import without_clock


def remains(run: Path) -> dict[str, Any]:
    """Metrics, samples, result, the saved model, and masters and moments of the last checkpoint."""
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
    """The two runs left the same behind."""
    ours, theirs = remains(run), remains(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == value, (run.name, name)
