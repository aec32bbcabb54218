"""Measure the API client: answers per second on one core against a local server, compared to bare aiohttp, and memory.

    python -m datagen.bench.client [--answers 8000] [--rounds 3]

The server is another process. It sends a fixed answer as soon as a request is complete. The floor is aiohttp, which
posts the same bodies and parses the answers as JSON without journal, limits or checks. Client and floor alternate; the
table shows medians. Memory is the peak of a new process with 2,000 requests in flight to a server that waits two
seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from datagen.api.chat import Ask, Record, make_request
from datagen.api.settings import ApiSettings
from datagen.run.runner import run
from datagen.simulate.faults import completion

_ANSWER = json.dumps(completion("काठमाडौँ नेपालको राजधानी हो। " * 20, 300, 400)).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_ANSWER),
    _ANSWER,
)
_PROMPT = "Translate this record into Nepali, as one JSON object with the same keys. " * 12
IN_FLIGHT = 2_000


class _Server(asyncio.Protocol):
    """Answer each request as soon as all its bytes have arrived."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) >= length:
            self._buffer = body[length:]
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, _RESPONSE)
            else:
                self._transport.write(_RESPONSE)


def _serve(port_to: Connection, delay_s: float) -> None:
    async def go() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Server(delay_s), "127.0.0.1", 0, backlog=4096)
        port_to.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(go())


def _start_server(delay_s: float) -> tuple[multiprocessing.Process, str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(there, delay_s), daemon=True)
    process.start()
    return process, f"http://127.0.0.1:{here.recv()}/v1"


async def _work(record: Record, ask: Ask) -> list[Record]:
    reply = await ask([{"role": "user", "content": f"{_PROMPT}{record['n']}"}], temperature=0)
    return [{"n": record["n"], "output": reply.text}]


def _settings(url: str, concurrency: int) -> ApiSettings:
    return ApiSettings(base_urls=(url,), key_variables=("BENCH_NO_KEY",), concurrency=concurrency)


def _ours(url: str, answers: int, concurrency: int, folder: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of this process for a whole run of the client."""
    name = f"{time.monotonic_ns()}"
    files = (folder / f"{name}.journal", folder / f"{name}.jsonl", folder / f"{name}.quarantine")
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    summary = asyncio.run(run([{"n": n} for n in range(answers)], _work, _settings(url, concurrency), *files))
    assert (summary.asked, summary.rows) == (answers, answers), summary
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


def _floor(url: str, answers: int, concurrency: int) -> tuple[float, float]:
    """Return wall-clock and CPU seconds for the same requests by aiohttp alone."""

    async def go() -> None:
        bodies = iter(
            [make_request("m", 2048, [{"role": "user", "content": f"{_PROMPT}{n}"}]).body() for n in range(answers)]
        )
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def worker() -> None:
                for body in bodies:
                    headers = {"Content-Type": "application/json"}
                    async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                        json.loads(await response.read())["choices"]

            await asyncio.gather(*(worker() for _ in range(concurrency)))

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    asyncio.run(go())
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


def _peak_mib(url: str, result: Connection, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _ours(url, 3 * IN_FLIGHT, IN_FLIGHT, folder)
    result.send((before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main(argv: Sequence[str]) -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m datagen.bench.client", description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=int, default=8_000, metavar="N", help="answers per round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--concurrency", type=int, default=64, metavar="N")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, url = _start_server(0.0)
        ours, floor = [], []
        for _ in range(args.rounds):
            floor.append(_floor(url, args.answers, args.concurrency))
            ours.append(_ours(url, args.answers, args.concurrency, folder))
        process.terminate()
        rates = _print_rates(args.answers, floor, ours)
        process, url = _start_server(2.0)
        here, there = multiprocessing.Pipe()
        measured = multiprocessing.get_context("spawn").Process(target=_peak_mib, args=(url, there, folder))
        measured.start()
        there.close()  # recv then fails if that process dies, instead of waiting forever
        before_mib, peak_mib = here.recv()
        measured.join()
        process.terminate()
    print(f"2,000 in flight   {peak_mib:8,.0f} MiB peak ({before_mib:,.0f} before the first request)")
    print(json.dumps({name: round(value, 3) for name, value in {**rates, "peak_mib": peak_mib}.items()}))


def _print_rates(answers: int, floor: list[tuple[float, float]], ours: list[tuple[float, float]]) -> dict[str, float]:
    rates = []
    for label, rounds in (("aiohttp alone", floor), ("whole client", ours)):
        wall_s, cpu_s = (statistics.median(column) for column in zip(*rounds))
        rates.append(answers / wall_s)
        print(f"{label:<17} {rates[-1]:8,.0f} answers/s   {cpu_s / answers * 1e3:.3f} ms CPU per answer", flush=True)
    return {"answers_per_s": rates[1], "aiohttp_answers_per_s": rates[0], "ratio": rates[1] / rates[0]}


if __name__ == "__main__":
    main(sys.argv[1:])
