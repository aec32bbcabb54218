"""Workload of a rollout benchmark: random or real prompts, and a length for each response."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import UserError
from engine.base.records import read_instructions
from engine.base.strict_json import parse_whole
from engine.generation.generate import Request
from engine.run.template_choice import choose_template
from engine.text.chats import encode_instruction
from engine.text.tokenizer import load_tokenizer

LENGTHS = ("fixed", "uniform", "lognormal")


@dataclass(frozen=True)
class Workload:
    """Prompts, and the number of tokens that every side must generate for each response."""

    prompts: list[tuple[int, ...]]
    responses: int
    new_tokens: list[int]  # [prompts x responses], grouped by prompt

    def requests(self, most: int | None = None) -> list[Request]:
        """Return requests with exact lengths (min = max), each cut to `most` tokens if given."""
        counts = [n if most is None else min(n, most) for n in self.new_tokens]
        return [
            Request(self.prompts[i // self.responses], i // self.responses, i % self.responses, n, n)
            for i, n in enumerate(counts)
        ]

    @property
    def repeated_prompts(self) -> list[tuple[int, ...]]:
        """The prompt of each response, in order."""
        return [prompt for prompt in self.prompts for _ in range(self.responses)]

    @property
    def useful_tokens(self) -> int:
        return sum(self.new_tokens)


def make_workload(
    model_dir: str,
    vocab_size: int,
    num_prompts: int,
    prompt_tokens: int,
    responses: int,
    lengths: str,
    max_new_tokens: int,
    mean_new_tokens: float,
    data: str | None,
    seed: int,
) -> Workload:
    """Return random prompts, or prompts of the records in `data` cut to prompt_tokens; lengths by `draw_lengths`."""
    rng = random.Random(seed)
    if data is None:
        prompts = [tuple(rng.randrange(3, vocab_size) for _ in range(prompt_tokens)) for _ in range(num_prompts)]
    else:
        records = list(read_instructions(data, require_output=False))
        if len(records) < num_prompts:
            raise UserError(f"--data {data} contains {len(records)} prompts, --num-prompts is {num_prompts}: lower it")
        tokenizer = load_tokenizer(model_dir)
        template = choose_template(None, model_dir, tokenizer).template
        # Cut tokens, even of the template: only lengths matter here, not answers.
        drawn = rng.sample(records, num_prompts)
        prompts = [
            tuple(encode_instruction(tokenizer, template, r.instruction, r.input))[-prompt_tokens:] for r in drawn
        ]
    count = num_prompts * responses
    return Workload(prompts, responses, draw_lengths(lengths, count, max_new_tokens, mean_new_tokens, rng))


def draw_lengths(how: str, count: int, cap: int, mean: float, rng: random.Random) -> list[int]:
    """Return `count` response lengths from 1 to cap.

    fixed: all cap. uniform: 1 to cap. lognormal: sigma 1, with the given mean before capping. Any other value names a
    file of recorded lengths, drawn with replacement: JSON Lines of numbers or of objects with `length`.
    """
    if how == "fixed":
        return [cap] * count
    if how == "uniform":
        return [rng.randint(1, cap) for _ in range(count)]
    if how == "lognormal":
        middle = math.log(mean) - 0.5  # a log-normal's mean is exp(mu + sigma^2 / 2)
        return [max(1, min(cap, round(rng.lognormvariate(middle, 1.0)))) for _ in range(count)]
    recorded = read_lengths(how)
    return [max(1, min(cap, rng.choice(recorded))) for _ in range(count)]


def read_lengths(path: str) -> list[int]:
    """Return recorded response lengths. UserError if the file is empty or contains anything else."""
    if not Path(path).is_file():
        raise UserError(f"--lengths {path} is neither a file nor one of {', '.join(LENGTHS)}: choose one")
    lengths = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--lengths {path} is not UTF-8 (byte {error.start}): give one length per line") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            lengths.append(_length(line, f"{path}:{number}"))
    if not lengths:
        raise UserError(f"--lengths {path} is empty: give one length per line")
    return lengths


def _length(line: str, where: str) -> int:
    try:
        value = parse_whole(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        value = value.get("length")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: no length in {line.strip()[:40]!r}: give an integer, or an object with `length`")
    return value


def check_same_lengths(name: str, outputs: Sequence[Sequence[int]], workload: Workload) -> None:
    """AssertionError unless every response has the requested number of tokens."""
    wrong = [i for i, (tokens, n) in enumerate(zip(outputs, workload.new_tokens, strict=True)) if len(tokens) != n]
    assert not wrong, f"{name}: response {wrong[0]} has {len(outputs[wrong[0]])} tokens"
