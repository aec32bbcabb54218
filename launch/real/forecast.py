"""How long a real run will take: the operations of each step over the rate of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.base.errors import UserError
from engine.base.records import read_records
from engine.models import load_config
from engine.models.hf import empty_model
from engine.text.tokenizer import load_tokenizer
from launch.real.stages import Step, flag_of

SIDE = 2048  # of the square product that measures the machine
# Rough shares of that rate which the steps reach on a CPU with small layers and short answers.
REACHED = {"sft": 0.25, "reward": 0.25, "ppo": 0.2, "sample": 0.12, "score": 0.3, "evaluate": 0.3}
ANSWER_TOKENS = 8.0  # of tasks and questions, roughly
READ_RECORDS = 400  # records whose tokens are counted


def forecast(base: Path, left: Sequence[Step]) -> str:
    """Return "about 3.1 hours left", or what can be said before the data exist."""
    if not left:
        return "nothing is left"
    model, rate = _Model(base), measured_rate()
    hours = sum(model.operations(step) / (rate * REACHED[stage_of(step)]) for step in left if stage_of(step) in REACHED)
    return f"about {hours / 3600:.1f} hours left at {rate / 1e9:,.0f} GFLOP/s"


def measured_rate() -> float:
    """Return the operations per second of a large product in bfloat16."""
    a = torch.randn(SIDE, SIDE).bfloat16()
    a @ a
    began = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * SIDE**3 / (time.perf_counter() - began)


def stage_of(step: Step) -> str:
    """Return the name of the launcher that a step runs, such as "sft"."""
    return Path(step.argv[0]).stem


class _Model:
    """Operations of the steps on one base model."""

    def __init__(self, base: Path):
        model = empty_model(load_config(base), str(base))
        self.tokenizer, self.layers, self.head = load_tokenizer(base), model.num_layers, model.head_weight.numel()
        self.layer = sum(weight.numel() for weight in model.layers.parameters()) / model.num_layers
        self.counted: dict[Path, tuple[int, float]] = {}

    def operations(self, step: Step) -> float:
        """Two for each weight a token passes forward, four backward; the head runs for response tokens alone."""
        stage, layers = stage_of(step), self.layers
        if stage == "evaluate":
            folder = Path(flag_of(step, "--data-dir"))
            options = sum(file.stat().st_size for file in folder.glob("*/*.json")) / 4  # tokens
            return options * 2 * layers * self.layer + 0.2 * options * 2 * self.head
        records, tokens = self._count(Path(flag_of(step, "--data")))
        whole = 2 * layers * self.layer
        if stage == "sft":
            epochs, top = float(flag_of(step, "--epochs")), int(flag_of(step, "--top-layers"))
            return records * epochs * (tokens * (whole + 4 * top * self.layer) + ANSWER_TOKENS * 6 * self.head)
        if stage == "reward":
            top = int(flag_of(step, "--top-layers"))
            return records * tokens * (whole + 4 * top * self.layer)
        if stage == "sample":
            count = int(flag_of(step, "--num-responses"))
            return records * (tokens * whole + count * ANSWER_TOKENS * (whole + 2 * self.head))
        if stage == "score":
            return records * tokens * whole
        rollouts = int(flag_of(step, "--max-steps")) * int(flag_of(step, "--batch-size"))
        top, epochs = int(flag_of(step, "--top-layers")), int(flag_of(step, "--ppo-epochs"))
        together = tokens + ANSWER_TOKENS
        generated = together * 2 * whole + ANSWER_TOKENS * 2 * self.head  # and scored by a reward model
        scored = 2 * (together * 2 * top * self.layer + ANSWER_TOKENS * 2 * self.head)
        updated = epochs * (together * 6 * top * self.layer + ANSWER_TOKENS * 4 * self.head)
        return rollouts * (generated + scored + updated)

    def _count(self, path: Path) -> tuple[int, float]:
        """Return (records, mean tokens of a record with all its responses). What is not made yet counts as tasks."""
        if path not in self.counted:
            records, texts = 0, []
            try:
                for _, row in read_records(path):
                    records += 1
                    if records <= READ_RECORDS:
                        answers = row.get("responses", [row.get("output", "")])
                        texts.append("\n".join(f"{row['instruction']}\n{row['input']}\n{text}" for text in answers))
            except UserError:
                return 2_400, 120.0
            tokens = sum(len(self.tokenizer(text)["input_ids"]) for text in texts)
            self.counted[path] = records, tokens / len(texts)
        return self.counted[path]
