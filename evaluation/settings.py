"""The settings of an evaluation: each field is a flag of launch/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from engine.settings import DTYPE_HELP, DTYPES, TrunkSettings, check_at_least, flag
from engine.text.templates import TEMPLATE_HELP
from evaluation.protocols import DEFAULT_PROTOCOL


@dataclass(frozen=True)
class EvaluateSettings(TrunkSettings):
    """Evaluation of one model: scored choices and generated answers."""

    _argument_group_name = "evaluate"
    lang: str = flag("language code: ne, vi, ... (26 languages and en); several with commas")
    model: str = flag("the model, a Hugging Face directory")
    data_dir: str = flag("folder that holds m_arc, belebele and so on; or hub, to download the four of the default")
    tasks: str = flag("tasks or .py files with TASKS, with commas", "arc,hellaswag,mmlu,truthfulqa")
    protocol: str = flag("prompt format and shots: strict, okapi, leaderboard-v1, lm-eval", DEFAULT_PROTOCOL)
    shots: int | None = flag("solved questions before each question (default: the protocol's)", None)
    shared_shots: bool = flag("the same shots before every question: faster, strict only", False)
    limit: int | None = flag("evaluate only the first N documents of each task", None)
    split: str | None = flag("the part to evaluate, such as validation (default: the task's)", None)
    seed: int | None = flag("seed for drawing shots and sampling answers (default: the protocol's)", None)
    seeds: str | None = flag("several seeds, 0,1,2: mean and spread over their draws of shots", None)
    max_length: int | None = flag("tokens of a prompt with its choice (default: the model's, or 2048)", None)
    bad_records: str = flag("on an unusable record, stop or leave it out", "error", choices=["error", "skip"])
    output: str | None = flag("folder for the results (default: RUNS/LANG/evaluate)", None)
    runs: str = flag("folder that holds all runs", "runs")
    overwrite: bool = flag("replace the results in the output folder", False)
    batch_tokens: int = flag("tokens per forward; scores do not depend on it", 512)
    cache_tokens: int = flag("tokens in the key/value cache; scores do not depend on it", 16_384)
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_tokens", "cache_tokens", "limit")
        check_at_least(2, self, "max_length")
        check_at_least(0, self, "shots")
        if self.seeds is None:
            return
        words = self.seeds.split(",")
        if self.seed is not None:
            raise UserError(f"--seed {self.seed} and --seeds {self.seeds} are both given: leave one out")
        if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < max(2, len(words)):
            raise UserError(f"--seeds is {self.seeds}: give two or more different whole numbers, such as 0,1,2")

    @property
    def languages(self) -> list[str]:
        return self.lang.split(",")

    @property
    def seed_list(self) -> list[int]:
        """The seeds of --seeds; empty without it."""
        return [int(word) for word in self.seeds.split(",")] if self.seeds else []

    @property
    def task_names(self) -> list[str]:
        return self.tasks.split(",")


@dataclass(frozen=True)
class AnswerSettings:
    """How the answers of generation tasks are made: greedily, one each, if nothing else is asked for."""

    _argument_group_name = "generated answers"
    template: str | None = flag(TEMPLATE_HELP, None)
    num_answers: int = flag("answers to each prompt; above 1 with a --temperature", 1)
    max_new_tokens: int = flag("longest answer in tokens", 256)
    stop: list[str] | None = flag("texts that end an answer; the answer is cut before them", None, action="extend")
    temperature: float = flag("sampling temperature; 0 always takes the likeliest token", 0.0)
    top_p: float = flag("sample among the likeliest tokens whose probabilities add up to this", 1.0)
    slots: int = flag("answers generated at once per rank", 64)
    toxicity_model: str | None = flag("classifier of toxic text, a local Hugging Face directory", None)
    toxicity_label: str | None = flag("its label for toxic text, if there are several (default: toxic)", None)

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_answers", "max_new_tokens", "slots")
        if self.sampling.temperature == 0 and self.num_answers > 1:
            raise UserError(
                f"--temperature is 0, so the {self.num_answers} answers to a prompt would be equal: raise it, or give "
                "--num-answers 1"
            )
        if "" in (self.stop or ()):
            raise UserError("--stop contains an empty text, which would end every answer at once: leave it out")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, top_p=self.top_p)
