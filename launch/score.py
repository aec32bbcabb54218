"""Score the responses of a file with a reward: `python launch/score.py --reward DIR --data FILE --output FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.base.errors import UserError
from engine.base.record_fields import BadField
from engine.base.records import InstructionRecord, read_records, write_jsonl
from engine.base.turns import FIELDS, USER, read_turns
from engine.batch import PackedBatch, action_mask
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.distributed.world import start_world
from engine.models import load_config, load_model, load_score_weight
from engine.packing import pack_together
from engine.run.folder import check_writable
from engine.run.template_choice import choose_template
from engine.settings import DTYPE_HELP, DTYPES, TrunkSettings, check_at_least, flag, is_function_name
from engine.text.encoding import prompt_of, prompt_text
from engine.text.templates import TEMPLATE_HELP, load_template
from engine.text.tokenizer import EOS, encode_response, load_tokenizer
from engine.training.modules import RewardModule
from engine.training.reward import score_sequences
from engine.training.scorers import FunctionScorer, check_reward, score_moments
from kernels.linear_logprob import linear_logprob
from launch.common import choose_dtype

Encoded = list[tuple[int, list[tuple[int, ...]]]]  # of each prompt: its length, and it with each of its responses
ROWS_AT_ONCE = 1_000  # prompts whose responses are packed together


@dataclass(frozen=True, kw_only=True)
class ScorerSettings(TrunkSettings):
    """How a reward model reads texts."""

    template: str | None = flag(TEMPLATE_HELP, None)
    max_length: int = flag("longest sequence in tokens; longer ones are an error", 2048)
    tokens_per_microbatch: int = flag("tokens per forward", 8192)
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])

    def __post_init__(self) -> None:
        check_at_least(2, self, "max_length")
        check_at_least(self.max_length, self, "tokens_per_microbatch")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(ScorerSettings):
    """What scores what."""

    _argument_group_name = "score"
    reward: str = flag(
        "reward model directory, or module:function of (prompt, response) -> float; with --reference a language model"
    )
    data: str = flag(
        "responses as launch/sample.py writes them: {instruction, input, responses, finished}, or with {messages}"
    )
    output: str = flag("file to write, .jsonl: the lines of --data, each with scores")
    reference: str | None = flag(
        "language model: the score is log p(response) under --reward minus that under this one; over samples of the "
        "first, the mean is its KL to the second, in nats per response",
        None,
    )
    overwrite: bool = flag("replace the output file", False)


def job(argv: Sequence[str]) -> None:
    """Check all inputs, then score every response and write the lines with `scores`."""
    (settings,) = parse_settings(
        (ScoreSettings,), argv, "python launch/score.py", "Score the responses of a file with a reward."
    )
    output = Path(settings.output)
    if output.exists() and not settings.overwrite:
        raise UserError(f"--output {output} exists: --overwrite replaces it, or name another file")
    check_writable(output)
    if settings.reference is None:
        check_reward(settings.reward)
    rows = read_responses(Path(settings.data))
    world = start_world(600.0)
    scores = chosen(settings)(settings, rows, world.device)
    write_jsonl(output, ({**row, "scores": values} for row, values in zip(rows, scores)))
    every = [x for values in scores for x in values]
    Console().say(
        f"{output}: {len(every):,} responses to {len(rows):,} prompts, mean score {sum(every) / len(every):.3f}"
    )


def chosen(settings: ScoreSettings) -> Callable[..., list[list[float]]]:
    """Return the function that scores."""
    if settings.reference is not None:
        return log_ratios
    return score_with_function if is_function_name(settings.reward) else score_with_model


def read_responses(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of responses. UserError for a line without the fields that scoring needs."""
    rows = []
    for line, row in read_records(path):
        prompt = () if "instruction" not in row and set(FIELDS) & row.keys() else (("instruction", str),)
        for name, kind in (*prompt, ("responses", list)):
            if not isinstance(row.get(name), kind):
                raise UserError(f"{path}, line {line}: field {name!r} is {row.get(name)!r:.60}: give a {kind.__name__}")
        if not prompt:
            try:
                _record_of(row)
            except BadField as bad:
                raise UserError(f"{path}, line {line}: {bad}") from None
        if not row["responses"] or not all(isinstance(text, str) for text in row["responses"]):
            raise UserError(f"{path}, line {line}: field 'responses' must be a list of at least one string")
        finished = row.get("finished", [True] * len(row["responses"]))
        if not isinstance(finished, list) or len(finished) != len(row["responses"]):
            raise UserError(f"{path}, line {line}: field 'finished' must have one value per response")
        rows.append({**({"input": ""} if prompt else {}), **row, "finished": finished})
    if not rows:
        raise UserError(f"{path} has no responses")
    return rows


def score_with_function(settings: ScoreSettings, rows: Sequence[dict], device: torch.device) -> list[list[float]]:
    """Return the function's score of each response. Its prompt is the text before the response, by the template.

    There is no tokenizer: in a conversation "</s>" follows an answer.
    """
    scorer, template = FunctionScorer(settings.reward, device), load_template(settings.template or "plain")
    scores = []
    for number, row in enumerate(rows, start=1):
        prompt = prompt_text(_record_of(row), template, EOS)
        output, count = row.get("output", ""), len(row["responses"])
        if scorer.wants_output and not (isinstance(output, str) and output):
            raise UserError(
                f"--reward {settings.reward} compares with the record's output, and prompt {number} of {settings.data} "
                "has no field 'output': add it to each line"
            )
        scores.append(scorer(None, None, [prompt] * count, row["responses"], [output] * count).tolist())
    return scores


def score_with_model(settings: ScoreSettings, rows: Sequence[dict], device: torch.device) -> list[list[float]]:
    """Return the reward model's score of each response, normalised by the moments in its config.json.

    A response that did not finish is scored without an EOS, as in PPO.
    """
    path = Path(settings.reward)
    encoded = _encoded(settings, rows, path)
    model = load_read(settings, path, device)
    module = RewardModule(model, load_score_weight(path).to(device), None).eval()
    mean, std = score_moments(path) or (0.0, 1.0)
    scores: list[list[float]] = []
    with Console().bar(len(rows), "scoring", "prompt") as bar:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = encoded[start : start + ROWS_AT_ONCE]
            batch = _packed(part, device)
            score_S = (score_sequences(module, batch, None, settings.tokens_per_microbatch) - mean) / std
            scores += [of_prompt.tolist() for of_prompt in score_S.split([len(of_prompt) for _, of_prompt in part])]
            bar.update(len(part))
    return scores


def log_ratios(settings: ScoreSettings, rows: Sequence[dict], device: torch.device) -> list[list[float]]:
    """Return log p(response) under --reward minus that under --reference, in nats, for each response.

    A response that did not finish has no EOS. UserError for tokenizers that differ.
    """
    paths = [Path(settings.reward), Path(settings.reference)]
    if load_tokenizer(paths[1]).get_vocab() != load_tokenizer(paths[0]).get_vocab():
        raise UserError(
            f"--reference {paths[1]} has another tokenizer than {paths[0]}: give the model it was trained from"
        )
    encoded = _encoded(settings, rows, paths[0])
    policy, reference = (_logprobs(settings, path, encoded, device) for path in paths)
    return [[a - b for a, b in zip(ours, theirs)] for ours, theirs in zip(policy, reference)]


def load_read(settings: ScorerSettings, path: Path, device: torch.device) -> torch.nn.Module:
    """Load a model that is only read, its layers in --trunk-dtype, its embedding and head in --embedding-dtype."""
    quantised = settings.quantised_layers(load_config(path).num_hidden_layers)
    stored = settings.trunk_dtype, quantised, settings.embedding_dtype
    return load_model(path, choose_dtype(settings.dtype, device, Console().say), device, *stored)


@torch.no_grad()
def _logprobs(settings: ScoreSettings, path: Path, encoded: Encoded, device: torch.device) -> list[list[float]]:
    """Return the log-probability of each response under a language model."""
    model = load_read(settings, path, device).eval()
    whole = _packed(encoded, "cpu")
    found = [0.0] * whole.num_sequences
    for ids in pack_together(whole.lengths, range(whole.num_sequences), settings.tokens_per_microbatch, whole.prompts):
        batch = whole.select(ids).to(device)
        columns_A = action_mask(batch, [whole.prompts[s][1] for s in ids]).nonzero()[:, 0]
        h_AD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)[columns_A])
        logprob_A, _, _ = linear_logprob(h_AD, model.head_weight, batch.target_T[columns_A], 1.0)
        sum_S = torch.zeros(len(ids), dtype=torch.float64, device=device)
        sum_S.index_add_(0, batch.sequence_T[columns_A], logprob_A.double())
        for i, logprob in zip(ids, sum_S.tolist()):
            found[i] = logprob
    rest = iter(found)
    return [[next(rest) for _ in of_prompt] for _, of_prompt in encoded]


def _packed(encoded: Encoded, device: torch.device | str) -> PackedBatch:
    prompt_lens = [length for length, of_prompt in encoded for _ in of_prompt]
    return PackedBatch.from_sequences([x for _, of_prompt in encoded for x in of_prompt], device, prompt_lens)


def _encoded(settings: ScoreSettings, rows: Sequence[dict], path: Path) -> Encoded:
    """Encode prompts and responses with the tokenizer of `path`. UserError for a sequence above --max-length."""
    tokenizer = load_tokenizer(path)
    template = choose_template(settings.template, path, tokenizer).template
    encoded = []
    for number, row in enumerate(rows, start=1):
        prompt = prompt_of(_record_of(row), tokenizer, template)
        sequences = list(_sequences(prompt, row, tokenizer))
        if (longest := max(map(len, sequences))) > settings.max_length:
            raise UserError(
                f"{settings.data}, a response to prompt {number} has {longest} tokens with its prompt, --max-length is "
                f"{settings.max_length}: raise it"
            )
        encoded.append((len(prompt), sequences))
    return encoded


def _record_of(row: Mapping[str, Any]) -> InstructionRecord:
    """Return the prompt of a line. BadField for a conversation that does not end with the user's message."""
    if "instruction" in row:
        return InstructionRecord("", row["instruction"], row["input"], "")
    name = next(name for name in FIELDS if name in row)
    *history, asked = read_turns(name, row[name])
    if asked.role != USER:
        raise BadField(f"field {name!r} ends with the assistant's message: end it with the user's")
    return InstructionRecord("", asked.content, "", "", tuple(history))


def _sequences(prompt: Sequence[int], row: dict[str, Any], tokenizer: Any) -> Iterator[tuple[int, ...]]:
    """Yield the prompt with each response. An empty one that did not finish gets its EOS: there must be a token."""
    for text, finished in zip(row["responses"], row["finished"]):
        response = encode_response(tokenizer, text)
        yield (*prompt, *(response if finished or len(response) == 1 else response[:-1]))


if __name__ == "__main__":
    main(job)
