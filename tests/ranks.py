"""run_ranks: run one function on several gloo ranks and return what each one returned."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

# One server serves a whole test process, so this names what any test wants of it.
PRELOADED = ["torch", "deepspeed", "transformers", "tests.engine.training.trainers", "tests.reliability.killing"]


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in `ranks` new processes. It must be importable; what it returns must be picklable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server imports torch and DeepSpeed once; each rank is forked from it, as new as a spawned one.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_entry, args=(results, rank, ranks, port, function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    received = {}
    while len(received) < ranks:
        if results.empty() and not any(p.is_alive() for p in processes):
            raise RuntimeError(f"ranks died without an answer: exit codes {[p.exitcode for p in processes]}")
        if results.empty():
            processes[0].join(0.05)
            continue
        rank, answer, error = results.get()
        if error:
            for process in processes:
                process.kill()
            raise RuntimeError(f"rank {rank} failed:\n{error}")
        received[rank] = torch.load(io.BytesIO(answer), weights_only=False)
    for process in processes:
        process.join()
    return [received[rank] for rank in range(ranks)]


def _entry(results: Any, rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        answer = io.BytesIO()  # as bytes: a tensor's own transport needs the sender alive
        torch.save(function(*args), answer)
        results.put((rank, answer.getvalue(), None))
    except BaseException:  # noqa: BLE001  the parent raises it again
        results.put((rank, None, traceback.format_exc()))
