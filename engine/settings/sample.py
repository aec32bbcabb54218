"""Settings of launch/sample.py, and how responses are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from engine.settings.flags import DTYPE_HELP, DTYPES, check_at_least, check_room, flag
from engine.settings.trunk import TrunkSettings
from engine.text.templates import TEMPLATE_HELP


@dataclass(frozen=True)
class SampleSettings(TrunkSettings):
    """Input, output and resources of launch/sample.py."""

    _argument_group_name = "sample"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str = flag("the model, a Hugging Face directory")
    data: str = flag("prompts: instruction records or conversations in .jsonl, .jsonl.gz or .json")
    output: str = flag("file to write, .jsonl: one line per prompt, in the order of the prompts")
    overwrite: bool = flag("start again: replace the output file and delete the responses of an interrupted run", False)
    template: str | None = flag(TEMPLATE_HELP, None)
    truncate: str = flag(
        "what to do with a prompt that is too long: stop (error), skip it (drop), or cut the start (left) or the "
        "end (right) of its input, then of its instruction, never the template or BOS",
        "error",
        choices=["error", "left", "right", "drop"],
    )
    slots: int = flag("sequences generated at once per rank", 128)
    cache_tokens: int | None = flag("key/value cache size in tokens (default: half of the free memory)", None)
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])

    def __post_init__(self) -> None:
        check_at_least(1, self, "slots")


@dataclass(frozen=True)
class ResponseSettings:
    """Number, length and sampling of responses."""

    _argument_group_name = "responses"
    num_responses: int = flag("responses per prompt", 4)
    max_new_tokens: int = flag("longest response in tokens", 256)
    min_new_tokens: int = flag("mask EOS until a response has this many tokens", 0)
    max_length: int = flag("longest sequence in tokens, prompt and response together", 512)
    stop: list[str] | None = flag("texts that end a response; the response is cut before them", None, action="extend")
    temperature: float = flag("sampling temperature; 0 always takes the likeliest token", 1.0)
    top_k: int = flag("sample among the k likeliest tokens; 0 for all", 0)
    top_p: float = flag("sample among the likeliest tokens whose probabilities add up to this", 1.0)
    min_p: float = flag("sample among tokens with at least this fraction of the highest probability", 0.0)
    repetition_penalty: float = flag("weaken tokens already in prompt or response; 1 for none", 1.0)
    seed: int = flag("seed of every random stream", 0)

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_responses", "max_new_tokens")
        check_at_least(0, self, "min_new_tokens")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min-new-tokens is {self.min_new_tokens}, --max-new-tokens is {self.max_new_tokens}: "
                "lower the first or raise the second"
            )
        check_room(self.max_new_tokens, self.max_length)
        if "" in (self.stop or ()):
            raise UserError("--stop contains an empty text, which would end every response at once: leave it out")
        if self.sampling.temperature == 0 and self.num_responses > 1:
            raise UserError(
                f"--temperature is 0, so the {self.num_responses} responses of a prompt would be equal: "
                "raise it, or give --num-responses 1"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
