"""Let people rank answers on a local web page: `python launch/annotate.py --data FILE --output ranking.jsonl`.

Every judgement is on the disk before the page goes on, in OUTPUT.judgements.jsonl. The rankings, which launch/reward.py
and launch/dpo.py read, are written from it when the server ends, and by --report.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aiohttp import web

from datagen.annotation.app import Annotation, check_page
from datagen.annotation.journal import KINDS, Journal
from datagen.annotation.prompts import Prompt, read_prompts
from datagen.annotation.results import report, write_rankings
from datagen.sources import check_outputs
from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.settings import flag
from launch.listening import LOOPBACK, listen

KEY_VARIABLE = "ANNOTATE_KEY"


@dataclass(frozen=True)
class AnnotateSettings:
    """The answers to rank, the rankings, and the address of the page."""

    _argument_group_name = "annotate"
    data: str = flag("answers to rank, as launch/sample.py or `python -m datagen rank` writes them")
    output: str = flag("rankings to write, .jsonl: one record per prompt and annotator")
    report: bool = flag("write the rankings, print counts and agreement, and end without a page", False)
    seed: int = flag("seed of the order in which each annotator sees the answers of a prompt", 0)
    host: str = flag(f"address to listen on; one that other machines can reach needs a key in {KEY_VARIABLE}",
                     "127.0.0.1")  # fmt: skip
    port: int = flag("port to listen on; 0 takes a free one", 8001)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}: give 0 to 65535")


def job(argv: Sequence[str]) -> None:
    """Check the files and serve until SIGTERM or Ctrl-C, then write the rankings and print the report."""
    (settings,) = parse_settings(
        (AnnotateSettings,), argv, "launch/annotate.py", "A local web page on which people rank answers."
    )
    output, key = Path(settings.output), os.environ.get(KEY_VARIABLE) or None
    kept = output.with_name(f"{output.name}.judgements.jsonl")
    if key is None and settings.host not in LOOPBACK:
        raise UserError(
            f"--host {settings.host} can be reached from other machines and {KEY_VARIABLE} is not set: set it to a key"
        )
    check_page()
    check_outputs([settings.data, str(kept)], {"--output": settings.output})
    if output.exists() and not kept.exists():
        raise UserError(f"--output {output} exists, but not its judgements {kept}: name another file, or delete it")
    prompts, alike = read_prompts(Path(settings.data))
    if settings.report and not kept.exists():
        raise UserError(f"--report: {kept} does not exist: rank some prompts on the page first, or correct --output")
    console = Console()
    with Journal(kept) as journal:
        keys = {prompt.key for prompt in prompts}
        others = sum(key not in keys for _, key in journal.last)
        notes = {
            "one answer": f"{alike:,} records whose answers are all the same are not shown" if alike else "",
            "other data": f"{others:,} judgements are about prompts or answers that --data does not hold; they are kept"
            if others
            else "",
            "damaged": f"{journal.damaged:,} lines of {kept} cannot be read, perhaps cut by a crash"
            if journal.damaged
            else "",
        }
        console.header("Annotation", {
            "data": f"{settings.data} ({len(prompts):,} prompts)",
            "judgements": f"{kept} ({len(journal.last):,})",
            **{name: note for name, note in notes.items() if note},
        })  # fmt: skip
        if not settings.report:
            asyncio.run(serve(settings, prompts, journal, key, console))
        finish(output, prompts, journal, console)


async def serve(
    settings: AnnotateSettings, prompts: Sequence[Prompt], journal: Journal, key: str | None, console: Console
) -> None:
    """Serve the page until a signal."""
    listening = listen(settings.host, settings.port)
    runner = web.AppRunner(
        Annotation(prompts, journal, settings.seed, key).app(), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    await web.SockSite(runner, listening).start()
    host, port = listening.getsockname()[:2]
    key_in_link = f"?key={quote(key, safe='')}" if key else ""
    console.say(f"  open        http://{f'[{host}]' if ':' in host else host}:{port}/{key_in_link}")
    console.say("  end         Ctrl-C: writes the rankings; all judgements are saved at any time")
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    await ending.wait()
    await runner.cleanup()


def finish(output: Path, prompts: Sequence[Prompt], journal: Journal, console: Console) -> None:
    """Write the rankings and print the report."""
    written, left_out = write_rankings(output, prompts, journal.last)
    found = report(prompts, journal.last)
    if found.counts:
        console.say()
        console.table(["annotator", *KINDS], found.rows())
    for id, annotator, note in found.flags:
        console.say(f"  flagged: {id} by {annotator}: {' '.join(note.split()) or 'no note'}")
    ties = f"; {left_out:,} where all answers tie are left out" if left_out else ""
    where = f"{output}: {written:,} ranking{'s' * (written > 1)}" if written else f"no rankings yet, so no {output}"
    console.say(f"\n  {found.agreement}\n  {where}{ties}")


if __name__ == "__main__":
    main(job)
