"""Serve a model over HTTP with an OpenAI-compatible API: `python launch/serve.py --model DIR --port 8000`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aiohttp import web
from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.device import choose_device
from engine.generation.cache_budget import num_pages_for
from engine.generation.generate import Request
from engine.generation.kv_cache import PAGE_SIZE, pages_for
from engine.run.template_choice import check_template, choose_template
from engine.serving.app import Server, ServerSettings
from engine.serving.ask import AskReader, Limits
from engine.serving.dialog import DialogEncoder
from engine.serving.live import LiveEngine
from engine.settings import DTYPE_HELP, DTYPES, check_at_least, flag
from engine.text.eos import eos_ids_of
from engine.text.templates import TEMPLATE_HELP
from launch.common import choose_dtype, load_checked
from launch.lengths import served_length
from launch.listening import LOOPBACK, listen

KEY_VARIABLE = "SERVE_API_KEY"


@dataclass(frozen=True)
class ModelSettings:
    """The model, and how many requests it runs at once."""

    _argument_group_name = "model"
    model: str = flag("the model, a Hugging Face directory")
    template: str | None = flag(TEMPLATE_HELP, None)
    max_length: int | None = flag(
        "longest prompt and response together, in tokens (default: the model's context)", None
    )
    slots: int = flag("responses generated at once", 64)
    cache_tokens: int | None = flag("key/value cache size in tokens (default: half of the free memory)", None)
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])

    def __post_init__(self) -> None:
        check_at_least(1, self, "slots", "max_length")


@dataclass(frozen=True)
class HttpSettings:
    """The address, and limits for clients."""

    _argument_group_name = "http"
    host: str = flag(
        "address to listen on; one that other machines can reach needs a key in SERVE_API_KEY", "127.0.0.1"
    )
    port: int = flag("port to listen on; 0 takes a free one", 8000)
    name: str | None = flag("the model's name in the API (default: from its folder)", None)
    chat_tokens: int = flag("longest answer to a chat request without a limit", 256)
    max_waiting: int = flag("responses that may wait for a slot; the server refuses more with a request to retry", 256)
    max_body_mb: int = flag("largest request body in MB", 1)
    drain_s: float = flag("on SIGTERM: seconds for open answers to finish", 30.0)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}: give 0 to 65535")
        check_at_least(1, self, "chat_tokens", "max_body_mb")
        check_at_least(0, self, "max_waiting")
        if self.drain_s < 0:
            raise UserError(f"--drain-s is {self.drain_s}: give 0 or more")  # infinity waits for all


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, with its tokenizer and dialog encoder."""

    engine: LiveEngine
    tokenizer: PreTrainedTokenizerFast
    dialogs: DialogEncoder
    template: str
    about: str
    room: str


def load(settings: ModelSettings) -> Loaded:
    """Load the model and check its settings. UserError if the sequence does not fit into the cache."""
    check_template(settings.template)  # before the model is loaded, so that a mistake shows at once
    device = choose_device()
    dtype = choose_dtype(settings.dtype, device, Console().say)
    length, room = served_length(settings.model, settings.max_length)
    model, tokenizer = load_checked(settings.model, dtype, device)
    model.requires_grad_(False)
    choice = choose_template(settings.template, settings.model, tokenizer)
    # The worst case: every slot has the longest sequence, plus the one token that a full prompt may generate.
    worst = [Request((0,), 0, 0, length)] * settings.slots
    pages = num_pages_for(model, worst, settings.slots, settings.cache_tokens)
    if (need := pages_for(length + 1) + 1) > pages:  # a shared prompt's half-filled page and its copy
        raise UserError(
            f"the cache has {pages * PAGE_SIZE} tokens, --max-length is {length}: lower it to "
            f"{max((pages - 1) * PAGE_SIZE - 1, 1)}, or raise --cache-tokens to {need * PAGE_SIZE}"
        )
    engine = LiveEngine(model, settings.slots, pages, length, eos_ids_of(settings.model, tokenizer, model.vocab_size))
    about = f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})"
    how = f"{str(dtype).removeprefix('torch.')} on {device.type}"
    dialogs = DialogEncoder(tokenizer, choice.template)
    return Loaded(engine, tokenizer, dialogs, choice.shown, f"{about}, {how}", room)


def name_of(model_dir: str) -> str:
    """Return the model name for the API: the folder's name, or ne-ppo for runs/ne/ppo/model."""
    path = Path(model_dir).resolve()
    return "-".join(path.parts[-3:-1]) if path.name == "model" and len(path.parts) > 3 else path.name


def job(argv: Sequence[str]) -> None:
    """Load the model and serve until SIGTERM or Ctrl-C."""
    settings, http = parse_settings(
        (ModelSettings, HttpSettings), argv, "launch/serve.py", "An OpenAI-compatible server of one model."
    )
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and http.host not in LOOPBACK:
        raise UserError(
            f"--host {http.host} can be reached from other machines and {KEY_VARIABLE} is not set: set it to a key"
        )
    asyncio.run(serve(settings, http, key))


async def serve(settings: ModelSettings, http: HttpSettings, key: str | None) -> None:
    """Serve until a signal, then finish open requests. Raise the exception of a failed step."""
    listening = listen(http.host, http.port)
    # Load in a thread that ends, and with it its OpenMP pool: with a second pool, libgomp counts more threads than
    # cores and stops spinning between regions, which made the worker's steps take 1.7 times as long.
    with ThreadPoolExecutor(1) as loader:
        loaded = await asyncio.get_running_loop().run_in_executor(loader, load, settings)
    engine, console = loaded.engine, Console()
    max_open, name = settings.slots + http.max_waiting, http.name or name_of(settings.model)
    limits = Limits(name, engine.model.vocab_size, engine.max_length, max_open, http.chat_tokens)
    reader = AskReader(loaded.tokenizer, loaded.dialogs, limits)
    server = Server(engine, loaded.tokenizer, reader, ServerSettings(max_open, http.max_body_mb << 20, key))
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.SockSite(runner, listening, backlog=1024)
    await site.start()
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    console.header("Serving", {
        "model": loaded.about,
        "name": name,
        "template": loaded.template,
        "room": f"{loaded.room}, {settings.slots} at once, "
        f"{engine.scheduler.pool.num_pages * PAGE_SIZE:,} positions in the cache, {http.max_waiting} may wait",
        "key": f"required, from {KEY_VARIABLE}" if key else "none",
        "address": url,
    })  # fmt: skip
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    while not ending.is_set() and server.worker.failure is None:
        try:
            async with asyncio.timeout(0.5):
                await ending.wait()
        except TimeoutError:
            pass
    for number in (signal.SIGINT, signal.SIGTERM):  # a second signal ends the process at once
        asyncio.get_running_loop().remove_signal_handler(number)
    console.say(f"ending: open requests have {http.drain_s:g} s" if server.worker.failure is None else "a step failed")
    await site.stop()
    in_time = await server.drain(http.drain_s)
    await runner.cleanup()
    console.say("ended" if in_time else "ended; some answers were cut short")
    if server.worker.failure:
        raise server.worker.failure


if __name__ == "__main__":
    main(job)
