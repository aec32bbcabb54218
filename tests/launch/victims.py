"""Helper program: sample in forked processes, one after another, and send each a signal at a given moment.

All processes share one import of PyTorch. The argument is JSON: {"argv", "output", "signals": [[number, bytes,
seconds], ...]}. Each process gets signal `number` (0: none) `seconds` after its shards have grown by `bytes`. Prints a
JSON list of {"status", "frames", "keys", "out", "err"}: exit status (minus the signal that killed it), number and
addresses of saved responses, and the output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by sampling, later: import it once for all processes
import torch.utils.cpp_extension

from engine.base.frames import scan_frames
from engine.cli.parse import main
from engine.generation.shards import shard_paths
from launch import sample


def grown(output: Path) -> int:
    return sum(path.stat().st_size for path in shard_paths(output))


def frames(output: Path) -> list[tuple[int, int]]:
    """Return the addresses of all saved responses in file order."""
    found = [payload for path in shard_paths(output) for _, _, payload in scan_frames(path.read_bytes())]
    return [(p["p"], p["k"]) for p in found if p and p["t"] == "response"]


def victim(argv: list[str], out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["launch/sample.py", *argv]
    status = 1
    try:
        main(sample.job)
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    finally:
        sys.stdout.flush()
        os._exit(status)


def attempt(argv: list[str], output: Path, number: int, num_bytes: int, seconds: float) -> dict[str, Any]:
    before = grown(output)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            victim(argv, out.fileno(), err.fileno())
        while True:
            gone, status = os.waitpid(child, os.WNOHANG)
            if not gone and number and grown(output) >= before + num_bytes:
                time.sleep(seconds)
                os.kill(child, number)
                gone, status = os.waitpid(child, 0)
            if gone:
                break
            time.sleep(0.0002)
        out.seek(0)
        err.seek(0)
        keys = frames(output)
        return {
            "status": os.waitstatus_to_exitcode(status), "frames": len(keys), "keys": keys,
            "out": out.read().decode(), "err": err.read().decode(),
        }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    results = [attempt(order["argv"], Path(order["output"]), *signal) for signal in order["signals"]]
    print(json.dumps(results))
