"""Sample K responses per prompt of a file, as JSON Lines: `deepspeed launch/sample.py --lang ne --model DIR ...`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.distributed as dist

from engine.base.errors import UserError
from engine.base.in_language import in_language
from engine.base.languages import Language, get_language
from engine.base.records import InstructionRecord, read_instructions, write_jsonl
from engine.base.turns import USER, Turn
from engine.cli.console import Console
from engine.cli.interrupt import Interrupt
from engine.cli.parse import main, parse_settings
from engine.distributed.world import World, start_world
from engine.generation.cache_budget import num_pages_for
from engine.generation.generate import Request
from engine.generation.kv_cache import PAGE_SIZE
from engine.generation.scheduler import Scheduler
from engine.generation.shards import EOS, LENGTH, STOP, SavedResponse, Shard, Shards, remove_shards, shard_paths
from engine.run.folder import check_writable, differences
from engine.run.template_choice import check_template, choose_template
from engine.settings import ResponseSettings, SampleSettings
from engine.text.encoding import encode_prompts
from engine.text.eos import eos_ids_of
from engine.training.checkpoint import fingerprint
from launch.common import choose_dtype, load_checked
from launch.lengths import fit_lengths
from launch.sample_rank import Progress, sample, share

LONGEST_WAIT_S = 7 * 24 * 3600  # ranks meet only at the end, and some finish long before others


def job(argv: Sequence[str]) -> None:
    """Check all inputs, then sample and write `{id, instruction, input, responses, finished}` lines.

    A conversation has `messages` in the place of instruction and input.
    """
    settings, how = parsed = parse_settings(
        (SampleSettings, ResponseSettings),
        argv,
        "deepspeed launch/sample.py",
        "Sample K responses per prompt of a file. Start an interrupted run again to continue it.",
    )
    language, output = get_language(settings.lang), Path(settings.output)
    check_output(output, settings)
    check_template(settings.template)
    records = list(read_instructions(settings.data, require_output=False))
    world = start_world(LONGEST_WAIT_S)
    console = Console(world.is_first)
    dtype = choose_dtype(settings.dtype, world.device, console.say)
    (how,) = fit_lengths([how], settings.model, parsed.given, console.say)
    model, tokenizer = load_checked(settings.model, dtype, world.device, settings)
    choice = choose_template(settings.template, settings.model, tokenizer)
    prompts = encode_prompts(
        records, tokenizer, choice.template, how.max_length - how.max_new_tokens, settings.truncate
    )
    eos_ids = eos_ids_of(settings.model, tokenizer, model.vocab_size)
    index_of = {record.id: index for index, record in enumerate(records)}
    requests = [
        Request(prompt.tokens, index_of[prompt.id], k, how.max_new_tokens, how.min_new_tokens)
        for prompt in prompts
        for k in range(how.num_responses)
    ]
    pages = num_pages_for(model, requests, settings.slots, settings.cache_tokens)
    Scheduler(requests, "given", 1, pages, PAGE_SIZE)  # UserError on all ranks if a request does not fit
    prints = fingerprint(model, [p.tokens for p in prompts], [[r.prompt_id for r in requests]])
    run = {
        **asdict(how),
        "weights": prints["weights"],
        "prompts": prints["tokens"],
        "eos_ids": list(eos_ids),
        "dtype": f"{str(dtype).removeprefix('torch.')} on {world.device.type}",
    }
    saved, damage = start(output, run, requests, settings.overwrite, world)
    waiting = [request for request in requests if (request.prompt_id, request.sample_id) not in saved]
    mine = share(waiting, world.size)[world.rank]

    left_out = f", {len(records) - len(prompts):,} too long skipped" if len(prompts) < len(records) else ""
    shortest = f", at least {how.min_new_tokens}" if how.min_new_tokens else ""
    penalty = f", repetition penalty {how.repetition_penalty}" if how.repetition_penalty != 1 else ""
    cut = f", {damage:,} damaged bytes skipped" if damage else ""
    there = f"{len(saved):,} of {len(requests):,} responses already saved{cut}"
    resumed = {"resumed": there} if saved or damage else {}
    console.header(f"Sampling in {language.name}", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        "data": f"{settings.data} ({len(prompts):,} prompts{left_out})",
        "template": choice.shown,
        "plan": f"{how.num_responses} responses per prompt, of up to {how.max_new_tokens} tokens{shortest}",
        "choice": f"temperature {how.temperature}, top-k {how.top_k or 'all'}, top-p {how.top_p}, min-p {how.min_p}"
        f"{penalty}, seed {how.seed}",
        "ends at": ", ".join([f"EOS {' or '.join(map(str, eos_ids))}", *map(repr, how.stop or ())]),
        "ranks": f"{world.size} x {world.device.type}, {str(dtype).removeprefix('torch.')}, {settings.slots} slots",
        "results": output,
        **resumed,
    })  # fmt: skip
    of_ranks = f" (rank 0 of {world.size})" if world.size > 1 else ""
    began = time.monotonic()
    with (
        Interrupt("sampling stops after this step" if world.is_first else "") as interrupt,
        console.bar(len(mine), f"sampling{of_ranks}", "response") as bar,
    ):
        try:
            progress = Progress(console, bar)
            responses = sample(model, tokenizer, mine, how, settings, eos_ids, progress, interrupt)
            tokens = keep(responses, output, run, settings.overwrite, world, interrupt)
            counts = join(output, records, requests, language, world, interrupt)
        except SystemExit:
            if world.is_first and (shard_paths(output) or not output.exists()):
                console.say(interrupted_message(output, len(requests), settings.overwrite))
            raise
    console.say(summary(output, len(requests), len(prompts), counts, tokens, time.monotonic() - began))


def check_output(output: Path, settings: SampleSettings) -> None:
    """Raise UserError if the output could not be written at the end, or would replace an existing file."""
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl: it gets one line per prompt")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, such as {output / 'responses.jsonl'}")
    if os.path.realpath(output) == os.path.realpath(settings.data):
        raise UserError(f"--output {output} is the --data file: name another file")
    if output.exists() and not settings.overwrite and not shard_paths(output):
        raise UserError(f"--output {output} exists: --overwrite replaces it, or name another file")
    check_writable(output)


def start(
    output: Path, run: Mapping[str, Any], requests: Sequence[Request], overwrite: bool, world: World
) -> tuple[set[tuple[int, int]], int]:
    """Return {(prompt id, sample id)} of the responses saved by earlier starts of this run, and the damaged bytes.

    `overwrite` deletes saved responses first. UserError if they belong to another run, or if the output exists and
    this run may not replace it.
    """
    saved, damage, mistake = set(), 0, None
    if world.is_first:
        try:
            if overwrite:
                remove_shards(output)
            shards = Shards(output)
            check_same(shards, run, output)
            saved, damage = shards.keys() & {(r.prompt_id, r.sample_id) for r in requests}, shards.damage
            # A run killed between the last rename and the removal of its shards finds its own output.
            may_replace = overwrite or len(saved) == len(requests) or any(s["replaces"] for s in shards.runs.values())
            if output.exists() and not may_replace:
                raise UserError(f"--output {output} exists: --overwrite replaces it, or name another file")
        except UserError as error:
            mistake = str(error)
    saved, damage, mistake = world.gather((saved, damage, mistake))[0]
    if mistake:
        raise UserError(mistake)
    return saved, damage


def check_same(shards: Shards, run: Mapping[str, Any], output: Path) -> None:
    """Raise UserError with the differences if the shards belong to another run."""
    for path, first in shards.runs.items():
        if changed := differences(first["run"], run, ()):
            raise UserError(
                f"{path} contains responses of another run ({'; '.join(changed)}): give equal settings, model and data "
                f"to continue it, another --output than {output}, or --overwrite to start again"
            )


def keep(
    responses: Iterable[SavedResponse],
    output: Path,
    run: Mapping[str, Any],
    overwrite: bool,
    world: World,
    interrupt: Interrupt,
) -> int:
    """Write this rank's responses to its shard and wait for the other ranks; return the tokens of all ranks."""
    tokens, mistake = 0, None
    try:
        with Shard(output, world.rank, run, overwrite) as shard:
            for response in responses:
                shard.append(response)
                tokens += response.num_tokens
    except UserError as error:
        mistake = str(error)
    agree(mistake, world, interrupt)
    return sum(world.gather(tokens))


def join(
    output: Path,
    records: Sequence[InstructionRecord],
    requests: Sequence[Request],
    language: Language,
    world: World,
    interrupt: Interrupt,
) -> Counter:
    """Write the output from the shards on the first rank. Return its counts there, empty counts elsewhere."""
    counts, mistake = Counter(), None
    if world.is_first:
        try:
            counts = write(output, records, requests, language, interrupt)
        except UserError as error:
            mistake = str(error)
    agree(mistake, world, interrupt)
    return counts


def agree(mistake: str | None, world: World, interrupt: Interrupt) -> None:
    """Wait for all ranks while checking for signals. UserError on all ranks if one passes a mistake."""
    if world.size > 1:
        arrived = dist.barrier(async_op=True)
        while not arrived.is_completed():
            time.sleep(0.02)
            interrupt.check()
        interrupt.check()  # when ranks stop, some exit before others check
        arrived.wait()
    if mistakes := [m for m in world.gather(mistake) if m]:
        raise UserError(mistakes[0])


def write(
    output: Path,
    records: Sequence[InstructionRecord],
    requests: Sequence[Request],
    language: Language,
    interrupt: Interrupt,
) -> Counter:
    """Write the output from the shards and delete them.

    Returns counts of tokens, of how responses ended, and of those that are not in the language.
    """
    shards, counts = Shards(output), Counter()
    keys = [(request.prompt_id, request.sample_id) for request in requests]
    if missing := len(set(keys) - shards.keys()):
        raise UserError(
            f"{missing:,} of {len(keys):,} responses are missing from the files {output}.rank*.part: "
            "let all ranks write to one folder, then run again"
        )

    def rows() -> Iterator[dict[str, Any]]:
        for prompt_id, group in groupby(shards.read(keys), key=lambda saved: saved.prompt_id):
            interrupt.check()
            responses, record = list(group), records[prompt_id]
            counts.update(response.end for response in responses)
            counts["tokens"] += sum(response.num_tokens for response in responses)
            counts["wrong language"] += sum(not in_language(response.text, language) for response in responses)
            yield {
                "id": record.id,
                **asked(record),
                "responses": [response.text for response in responses],
                "finished": [response.end != LENGTH for response in responses],
            }

    write_jsonl(output, rows())
    remove_shards(output)
    return counts


def asked(record: InstructionRecord) -> dict[str, Any]:
    """Return the fields of a record's prompt: a conversation's messages, or instruction and input."""
    if not record.history:
        return {"instruction": record.instruction, "input": record.input}
    return {"messages": [turn.message for turn in (*record.history, Turn(USER, record.instruction))]}


def interrupted_message(output: Path, num_responses: int, overwrite: bool) -> str:
    """Return the message of an interrupted run."""
    without = " without --overwrite" if overwrite else ""
    kept = f"{len(Shards(output)):,} of {num_responses:,} responses are kept"
    return f"\n  stopped: {kept}, the same command{without} samples the others"


def summary(output: Path, num_responses: int, num_prompts: int, counts: Counter, tokens: int, seconds: float) -> str:
    """Return the last line: what was written, and how fast. `tokens` were sampled in `seconds`."""
    stopped = f", {counts[STOP] / num_responses:.0%} at a stop string" if counts[STOP] else ""
    of_all = f"{counts['tokens']:,} tokens, {tokens:,} of them" if tokens < counts["tokens"] else f"{tokens:,} tokens"
    ended = f"{counts[EOS] / num_responses:.0%} ended with EOS{stopped}"
    wrong = f"{counts['wrong language'] / num_responses:.0%} in a wrong language"
    return (
        f"\n  {output}: {num_responses:,} responses to {num_prompts:,} prompts, {ended}, {wrong}; "
        f"{of_all} in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    main(job)
