"""Tiny models of three families and tiny trainers of four kinds, on any device: the same numbers are due everywhere."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, Gemma3TextConfig, LlamaConfig, PreTrainedTokenizerFast

from engine.cli.console import Console
from engine.cli.parse import build_settings
from engine.distributed.world import World
from engine.models import build_model
from engine.models.decoder import Decoder
from engine.presets import presets
from engine.run.folder import Run
from engine.settings import STAGE_SETTINGS, split_of
from engine.text.encoding import Example, Prompt, RankedExamples

VOCABULARY, BOS, EOS, FIRST_WORD = 96, 1, 2, 4
TRAINERS = ("sft", "reward", "dpo", "ppo")
STEPS = 3
_ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 3, "initializer_range": 0.15}
_llama = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 80, "max_position_embeddings": 2048, **_ids,
}  # fmt: skip
CONFIGS = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=3, n_head=4, **_ids),
    "llama": LlamaConfig(**_llama, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**_llama, head_dim=32, sliding_window=50, sliding_window_pattern=2),
}
ROOT = Path(__file__).resolve().parents[2]


def model_of(family: str, device: torch.device, seed: int = 0) -> Decoder:
    """Return a float32 model with random weights, the same bits before they go to any device."""
    return build_model(CONFIGS[family], seed).to(device)


def tokenizer_of(vocabulary: int, eos: int = EOS) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a word: token 7 is "w7"."""
    words = {f"w{i}": i for i in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", eos_token=f"w{eos}")


def text_of(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def _words(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(count))


def _example(rng: random.Random, name: str, prompt: tuple[int, ...]) -> Example:
    return Example(name, (*prompt, *_words(rng, rng.choice([0, 1, 3, 9, 19])), EOS), len(prompt))


def examples() -> list[Example]:
    """Return sequences of 2 to 60 tokens."""
    rng = random.Random(1)
    return [_example(rng, f"e{i}", _words(rng, rng.choice([1, 2, 5, 12, 40]))) for i in range(3 * STEPS)]


def rankings() -> list[RankedExamples]:
    """Return prompts with three ranked responses each, two of them of equal rank."""
    rng, made = random.Random(2), []
    for i in range(2 * STEPS):
        prompt = _words(rng, rng.choice([1, 3, 9]))
        made.append(RankedExamples(f"r{i}", tuple(_example(rng, f"r{i}", prompt) for _ in range(3)), (1, 2, 2)))
    return made


def prompts(count: int, lengths: Sequence[int], vocabulary: int = VOCABULARY, seed: int = 3) -> list[Prompt]:
    """Return random prompts whose lengths go round the given ones."""
    rng = random.Random(seed)
    tokens = [
        tuple(rng.randrange(FIRST_WORD, vocabulary) for _ in range(lengths[i % len(lengths)])) for i in range(count)
    ]
    return [Prompt(f"p{i}", one, text_of(one), "") for i, one in enumerate(tokens)]


def settings(stage: str, **changes: Any) -> Any:
    """Return the settings groups of a stage, made small; changes name their fields."""
    small = {
        "lang": "en", "monitor": "none", "lr": 3e-3, "schedule": "constant", "warmup_steps": 0, "eps": 1e-3,
        "batch_size": 2 if stage in ("reward", "dpo") else 4, "epochs": 4, "max_steps": STEPS, "max_length": 64,
        "tokens_per_microbatch": 256,
    }  # fmt: skip
    if stage == "reward":
        small |= {"top_layers": 2}
    if stage == "dpo":
        small |= {"top_layers": "2"}
    if stage == "ppo":
        small |= {
            "lr": 3e-4, "top_layers": "2", "max_new_tokens": 12, "minibatch_size": 2, "ppo_epochs": 2, "slots": 3,
            "reward": ["engine.reward_functions:noise"],
        }  # fmt: skip
    return build_settings(STAGE_SETTINGS[stage], presets(stage)["default"], {**small, **changes})


def trainer_of(
    stage: str, world: World, folder: Path, zero: str = "zero0", family: str = "llama", **changes: Any
) -> Any:
    """Return a trainer of the stage in a folder of its own. Needs DeepSpeed."""
    from engine.training.context import Context
    from engine.training.dpo import DPOTrainer
    from engine.training.ppo import PPOTrainer
    from engine.training.reward import RewardTrainer
    from engine.training.scorers import load_scorer
    from engine.training.sft import SFTTrainer

    groups = settings(stage, **changes)
    run = Run(folder, stage, groups, world)
    if not groups[0].resume:
        run.start()
    context = Context(*groups, world, run, Console(enabled=False), ds_config(zero))
    model = model_of(family, world.device)
    if stage == "sft":
        return SFTTrainer(model, examples(), [], context)
    if stage == "reward":
        weight_D = 0.3 * torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(4))
        return RewardTrainer(model, weight_D, rankings(), [], context)
    if stage == "dpo":
        return DPOTrainer(model, rankings(), [], context)
    tokenizer, split = tokenizer_of(VOCABULARY), split_of(groups[3].top_layers, model.num_layers)
    scorer = load_scorer(groups[3].reward[0], model, split, tokenizer, groups[2].tokens_per_microbatch)
    return PPOTrainer(model, tokenizer, [EOS], prompts(9, [1, 2, 4, 9, 30]), scorer, context)


def ds_config(name: str) -> dict[str, Any]:
    """Return a file of ds_configs/ ({} for zero0), with ZeRO-3 taking even tiny weights apart."""
    if name == "zero0":
        return {}
    config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text(encoding="utf-8"))
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def rows_of(trainer: Any) -> list[dict[str, float]]:
    """Return the numbers logged in each step of the run, without times."""
    lines = (trainer.run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if isinstance(v, int | float) and _is_bare(k)} for row in rows]


def _is_bare(name: str) -> bool:
    return not name.startswith("time/") and name not in ("eps", "time", "seconds")


def stop_in_step(trainer: Any, step: int) -> None:
    """Send this process SIGTERM inside the trainer's so-manieth optimizer step."""
    own, calls = trainer.zero.step, []

    def stepping(lr: float) -> float:
        calls.append(lr)
        if len(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return own(lr)

    trainer.zero.step = stepping
