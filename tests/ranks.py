"""Run one function on several gloo ranks, with or without a result, in processes forked from one server."""

from __future__ import annotations

import gc
import io
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.multiprocessing as mp

# One server serves a whole test process, so this names what any test wants of it.
PRELOADED = [
    *("torch", "deepspeed", "transformers", "tests.engine.training.trainers"),
    *("tests.reliability.lazy_imports", "tests.reliability.killing"),
]


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on `ranks` new processes and return the results by rank.

    The function must be importable and its result picklable. RuntimeError if a rank raises or dies.
    """
    results = mp.get_context("forkserver").SimpleQueue()
    processes = start_ranks(_put_result, ranks, results, function, args)
    received = {}
    while len(received) < ranks:
        if results.empty() and not any(p.is_alive() for p in processes):
            raise RuntimeError(f"ranks died without a result: exit codes {[p.exitcode for p in processes]}")
        if results.empty():
            processes[0].join(0.05)
            continue
        rank, result, error = results.get()
        if error:
            for process in processes:
                process.kill()
            raise RuntimeError(f"rank {rank} failed:\n{error}")
        received[rank] = torch.load(io.BytesIO(result), weights_only=False)
    for process in processes:
        process.join()
    return [received[rank] for rank in range(ranks)]


def start_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[BaseProcess]:
    """Start `function(*args)` on `ranks` new processes and return the processes by rank.

    A rank finds its number in the environment, as under a launcher. The function must be importable.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server imports torch and DeepSpeed once; each rank is forked from it, as new as a spawned one.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=_enter, args=(rank, ranks, port, function, args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def _enter(rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple) -> None:
    gc.freeze()  # as conftest.py does
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    function(*args)


def _put_result(results: Any, function: Callable[..., Any], args: tuple) -> None:
    rank = int(os.environ["RANK"])
    try:
        result = io.BytesIO()  # as bytes: torch's own tensor transport needs the sender to stay alive
        torch.save(function(*args), result)
        results.put((rank, result.getvalue(), None))
    except BaseException:  # noqa: BLE001  the parent raises it again
        results.put((rank, None, traceback.format_exc()))
