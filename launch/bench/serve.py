"""Compare a server's speed with many clients and with one at a time: `python launch/bench/serve.py --model DIR`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.device import choose_device
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.models import load_model
from engine.settings import check_at_least, flag
from launch.serve import KEY_VARIABLE

_STARTS_WITHIN_S = 120.0


@dataclass(frozen=True)
class BenchSettings:
    """The requests, and the number of clients."""

    _argument_group_name = "bench"
    model: str = flag("the model, a Hugging Face directory")
    clients: int = flag("concurrent clients; each sends one request", 64)
    alone: int = flag("number of these requests to also send one after another", 8)
    prompt_tokens: int = flag("random tokens per prompt", 32)
    min_tokens: int = flag("shortest answer", 16)
    max_tokens: int = flag("longest answer; lengths are uniform between the two", 64)
    seed: int = flag("seed of prompts and lengths", 0)
    json: bool = flag("also print the numbers as one JSON line at the end", False)

    def __post_init__(self) -> None:
        check_at_least(1, self, "clients", "alone", "prompt_tokens", "min_tokens")
        if self.max_tokens < self.min_tokens:
            raise UserError(f"--max-tokens is {self.max_tokens}, --min-tokens {self.min_tokens}: raise the first")
        if self.alone > self.clients:
            raise UserError(f"--alone is {self.alone}, there are {self.clients} requests: give at most as many")


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens, and the arrival time of each chunk in seconds after the request."""

    tokens: int
    chunk_s: tuple[float, ...]


def job(argv: Sequence[str]) -> None:
    """Start a server, send requests one after another and all at once; then run the same work without a server."""
    (settings,) = parse_settings((BenchSettings,), argv, "python launch/bench/serve.py", __doc__)
    console = Console()
    with served(settings.model, settings.clients) as url:
        vocab_size = json.loads(Path(settings.model, "config.json").read_text(encoding="utf-8"))["vocab_size"]
        bodies = requests(settings, vocab_size)
        alone, alone_s, together, together_s = asyncio.run(measure(url, bodies, settings.alone))
    direct_alone_s, direct_s = without_a_server(settings.model, bodies, settings.alone)
    tokens = sum(answer.tokens for answer in together)
    alone_rate, rate = sum(answer.tokens for answer in alone) / alone_s, tokens / together_s
    firsts = [answer.chunk_s[0] for answer in together]
    silences = [max(b - a for a, b in zip(answer.chunk_s, answer.chunk_s[1:])) for answer in together]
    pace = [answer.chunk_s[-1] / answer.tokens for answer in together]
    numbers = {
        "alone, tokens/s": alone_rate,
        "together, tokens/s": rate,
        "ratio": rate / alone_rate,
        "together, share of the rate without a server": direct_s / together_s,
        "alone, share of the rate without a server": direct_alone_s / alone_s,
        "first chunk, s, median": statistics.median(firsts),
        "first chunk, s, last of all": max(firsts),
        "longest silence in a stream, s": max(silences),
        "seconds a token, slowest client / median": max(pace) / statistics.median(pace),
        "answers that were whole": sum(a.tokens == body["max_tokens"] for a, body in zip(together, bodies)),
    }
    console.header(
        f"{settings.clients} clients, answers of {settings.min_tokens} to {settings.max_tokens} tokens, "
        f"{tokens:,} in total",
        {name: f"{value:,.2f}" if isinstance(value, float) else value for name, value in numbers.items()},
    )
    if settings.json:
        print(json.dumps({"settings": asdict(settings), "numbers": numbers}))


@contextmanager
def served(model: str, slots: int) -> Iterator[str]:
    """Start a server in its own process and yield its base URL. UserError if it does not start."""
    command = [sys.executable, str(Path(__file__).parents[1] / "serve.py"), "--model", model, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    process = subprocess.Popen(
        [*command, "--slots", str(slots)], stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    )
    try:
        began = time.monotonic()
        for line in process.stdout or ():
            name, _, value = line.strip().partition(" ")
            if name == "address":
                yield value.strip()
                return
            if time.monotonic() - began > _STARTS_WITHIN_S:
                break
        raise UserError(f"the server of {model} did not start: `{' '.join(command)}` says why")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def requests(settings: BenchSettings, vocab_size: int) -> list[dict]:
    """Return the request bodies. min_tokens keeps answers from ending early."""
    rng = random.Random(settings.seed)
    bodies = []
    for number in range(settings.clients):
        length = rng.randint(settings.min_tokens, settings.max_tokens)
        prompt = [rng.randrange(10, vocab_size) for _ in range(settings.prompt_tokens)]
        bodies.append({"prompt": prompt, "seed": number, "max_tokens": length, "min_tokens": length, "stream": True})
    return bodies


async def measure(url: str, bodies: list[dict], num_alone: int) -> tuple[list[Answer], float, list[Answer], float]:
    """Return answers and seconds of the first num_alone requests in sequence, then those of all at once."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await ask(session, url, bodies[0])  # warm-up
        began = time.perf_counter()
        alone = [await ask(session, url, body) for body in bodies[:num_alone]]
        alone_s = time.perf_counter() - began
        began = time.perf_counter()
        together = await asyncio.gather(*(ask(session, url, body) for body in bodies))
        return alone, alone_s, together, time.perf_counter() - began


async def ask(session: aiohttp.ClientSession, url: str, body: dict) -> Answer:
    """Send one request and return its streamed answer."""
    began, times, tokens = time.perf_counter(), [], 0
    async with session.post(f"{url}/completions", json={**body, "stream_options": {"include_usage": True}}) as response:
        if response.status != 200:
            raise UserError(f"the server says {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                if event["choices"]:
                    times.append(time.perf_counter() - began)
                else:
                    tokens = event["usage"]["completion_tokens"]
    return Answer(tokens, tuple(times))


def without_a_server(model_dir: str, bodies: list[dict], num_alone: int) -> tuple[float, float]:
    """Return the seconds of the first num_alone requests in sequence, and of all requests as one rollout."""
    model = load_model(model_dir, device=choose_device())
    work = [Request(tuple(b["prompt"]), b["seed"], 0, b["max_tokens"], b["min_tokens"]) for b in bodies]

    def seconds(*rollouts: Sequence[Request]) -> float:
        began = time.perf_counter()
        for requests in rollouts:
            generate(model, requests, Sampling(), 0, -1, len(requests))
        return time.perf_counter() - began

    seconds(work[:1])  # warm-up
    return seconds(*([request] for request in work[:num_alone])), seconds(work)


if __name__ == "__main__":
    main(job)
