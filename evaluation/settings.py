"""The settings of an evaluation: each field is a flag of launch/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass

from engine.settings import check_at_least, flag
from evaluation.protocols import DEFAULT_PROTOCOL


@dataclass(frozen=True)
class EvaluateSettings:
    """Multiple-choice evaluation of one model."""

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
    seed: int | None = flag("seed for drawing shots (default: the protocol's)", None)
    max_length: int | None = flag("tokens of a prompt with its choice (default: the model's, or 2048)", None)
    bad_records: str = flag("on an unusable record, stop or leave it out", "error", choices=["error", "skip"])
    output: str | None = flag("folder for the results (default: RUNS/LANG/evaluate)", None)
    runs: str = flag("folder that holds all runs", "runs")
    overwrite: bool = flag("replace the results in the output folder", False)
    batch_tokens: int = flag("tokens per forward; scores do not depend on it", 512)
    cache_tokens: int = flag("tokens in the key/value cache; scores do not depend on it", 16_384)
    dtype: str = flag("auto: bfloat16 on a GPU, float32 on a CPU", "auto", choices=["auto", "float32", "bfloat16"])

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_tokens", "cache_tokens", "limit")
        check_at_least(2, self, "max_length")
        check_at_least(0, self, "shots")

    @property
    def languages(self) -> list[str]:
        return self.lang.split(",")

    @property
    def task_names(self) -> list[str]:
        return self.tasks.split(",")
