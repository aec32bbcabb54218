"""K responses to every prompt of a file, as JSON Lines: `deepspeed launch/sample.py --lang ne --model DIR ...`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.cli import main, parse_settings
from engine.console import Console
from engine.distributed import World, start_world
from engine.encoding import Prompt, encode_prompts
from engine.errors import UserError
from engine.generation import Request, Response, stream
from engine.languages import get_language
from engine.prompts import load_template
from engine.records import InstructionRecord, read_instructions, write_jsonl
from engine.runs import check_writable, template_of
from engine.seeds import derive_seed
from engine.settings import SampleSettings
from engine.tokenizer import decode
from launch.common import choose_dtype, load_checked


def job(argv: Sequence[str]) -> None:
    """Read and check everything, then sample and write `{id, instruction, input, responses, finished}` lines."""
    (settings,) = parse_settings(
        (SampleSettings,), argv, "deepspeed launch/sample.py", "K responses to every prompt of a file."
    )
    language, output = get_language(settings.lang), Path(settings.output)
    check_output(output, settings)
    recorded = template_of(settings.model)
    template = settings.template or recorded or "alpaca"
    form, records = load_template(template), list(read_instructions(settings.data, require_output=False))
    world = start_world()
    console, dtype = Console(world.is_first), choose_dtype(settings.dtype, world.device)
    model, tokenizer = load_checked(settings.model, dtype, world.device, settings.max_length)
    room = settings.max_length - settings.max_new_tokens
    prompts = encode_prompts(records, tokenizer, form, room, settings.truncate)

    why = "--template" if settings.template else "recorded by the model's run" if recorded else "the default"
    left_out = f", {len(records) - len(prompts):,} too long left out" if len(prompts) < len(records) else ""
    top_k = settings.top_k or "all"
    console.header(f"Sampling in {language.name}", {
        "model": f"{settings.model} ({model.config.model_type}, {model.num_layers} layers of {model.hidden_size})",
        "data": f"{settings.data} ({len(prompts):,} prompts{left_out})",
        "template": f"{template} ({why})",
        "plan": f"{settings.num_responses} responses a prompt, of up to {settings.max_new_tokens} tokens",
        "choice": f"temperature {settings.temperature}, top-k {top_k}, top-p {settings.top_p}, seed {settings.seed}",
        "ranks": f"{world.size} x {world.device.type}, {str(dtype).removeprefix('torch.')}, {settings.slots} slots",
        "results": output,
    })  # fmt: skip
    began = time.monotonic()
    tokens, ended = sample(model, tokenizer, records, prompts, settings, output, world, console)
    seconds, responses = time.monotonic() - began, len(prompts) * settings.num_responses
    console.say(
        f"\n  {output}: {responses:,} responses to {len(prompts):,} prompts, {ended / responses:.0%} ended with EOS; "
        f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
    )


def check_output(output: Path, settings: SampleSettings) -> None:
    """UserError for an output that could not be written at the end, or would cost a file that is there."""
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl: one line a prompt is written")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, such as {output / 'responses.jsonl'}")
    if os.path.realpath(output) == os.path.realpath(settings.data):
        raise UserError(f"--output {output} is the --data file: name another file")
    if output.exists() and not settings.overwrite:
        raise UserError(f"--output {output} is there already: --overwrite replaces it, or name another file")
    check_writable(output)


def sample(
    model,
    tokenizer,
    records: Sequence[InstructionRecord],
    prompts: Sequence[Prompt],
    settings: SampleSettings,
    output: Path,
    world: World,
    console: Console,
) -> tuple[int, int]:
    """Write the file. Returns the tokens sampled and the responses that ended with EOS, of all ranks together.

    Each rank writes the lines of its share as they come, into a part beside the output; the first one joins them.
    """
    index_of = {record.id: index for index, record in enumerate(records)}
    shares = [share(prompts, rank, world.size) for rank in range(world.size)]
    mine = [prompts[i] for i in shares[world.rank]]
    part = output.with_name(f"{output.name}.rank{world.rank}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    tokens = ended = 0
    began = time.monotonic()
    with (
        console.bar(len(mine) * settings.num_responses, "sampling", "response") as bar,
        open(part, "w", encoding="utf-8") as file,
    ):

        def progress(done: int, new_tokens: int) -> None:
            bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):,.0f} tokens/s", refresh=False)
            bar.update(done - bar.n)

        indices = [index_of[prompt.id] for prompt in mine]
        answers = in_order(model, tokenizer, mine, indices, settings, progress)
        for responses, index in zip(answers, indices, strict=True):
            tokens += sum(len(response.tokens) for response in responses)
            ended += sum(response.ended for response in responses)
            line = {
                "id": records[index].id,
                "instruction": records[index].instruction,
                "input": records[index].input,
                "responses": [decode(tokenizer, response.tokens) for response in responses],
                "finished": [response.ended for response in responses],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    # Not splitlines: a response may hold U+2028, which JSON leaves as it is.
    lines_of_rank = world.gather(part.read_text(encoding="utf-8").split("\n")[:-1])
    if world.is_first:
        line_of = {i: line for ids, lines in zip(shares, lines_of_rank) for i, line in zip(ids, lines)}
        write_jsonl(output, (json.loads(line_of[i]) for i in sorted(line_of)))
    world.barrier()
    part.unlink()
    totals = world.gather((tokens, ended))
    return sum(t for t, _ in totals), sum(e for _, e in totals)


def share(prompts: Sequence[Prompt], rank: int, size: int) -> list[int]:
    """The places of a rank's prompts: the longest first, dealt out in turn, then back in order."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
    return sorted(order[rank::size])


def in_order(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[int],
    settings: SampleSettings,
    on_progress: Callable[[int, int], None],
) -> Iterator[list[Response]]:
    """The K responses of each prompt, handed out in the prompts' order as soon as those before it are complete."""
    k, ready, following = settings.num_responses, {}, 0
    requests = [
        Request(prompt.tokens, prompt_id, sample_id, settings.max_new_tokens)
        for prompt, prompt_id in zip(prompts, prompt_ids)
        for sample_id in range(k)
    ]
    seed = derive_seed(settings.seed, "sample")
    for i, response in stream(
        model, requests, settings.sampling, seed, tokenizer.eos_token_id, settings.slots, on_progress=on_progress
    ):
        ready[i] = response
        while all(place in ready for place in range(following, following + k)):
            yield [ready.pop(place) for place in range(following, following + k)]
            following += k


if __name__ == "__main__":
    main(job)
