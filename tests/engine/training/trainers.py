"""Tiny trainers on synthetic tokens: what the proofs of SFT, reward training, DPO and PPO have in common."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BloomConfig, LlamaConfig, PreTrainedTokenizerFast

from engine.base.mixture import parse_sources
from engine.batch import PackedBatch
from engine.cli.console import Console
from engine.distributed.world import World, start_world
from engine.models import Bloom, Llama, build_model, load_model, save_model
from engine.models.quantised import quantise_trunk
from engine.run.folder import Run
from engine.settings import (
    BatchSettings,
    DPOSettings,
    OptimizerSettings,
    PPOSettings,
    PretrainSettings,
    RewardSettings,
    RunSettings,
    SFTSettings,
    TextRunSettings,
    split_of,
)
from engine.text.encoding import Example, Prompt, RankedExamples
from engine.training.context import Context
from engine.training.corpus import Corpus, HeldOutText, names_of_files, tokenise
from engine.training.dpo import DPOTrainer
from engine.training.export import body_weights, save_trained
from engine.training.lora import LoraModule
from engine.training.ppo import PPOTrainer
from engine.training.pretrain import PretrainTrainer
from engine.training.pretraining import Pretraining
from engine.training.reward import RewardTrainer
from engine.training.sft import SFTTrainer
from engine.training.weighted_scorers import load_rewards
from kernels.linear_logprob import linear_logits
from tests.ranks import run_ranks

VOCABULARY, BOS, EOS, FIRST_WORD = 60, 1, 2, 4
FAMILIES = ("bloom", "llama")
EVERY_STAGE = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
DSCONFIGS = Path(__file__).parents[3] / "ds_configs"
_shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": BOS, "eos_token_id": EOS}
CONFIGS = {
    "bloom": partial(BloomConfig, n_head=4, initializer_range=0.15, **_shape),
    "llama": partial(
        LlamaConfig, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, initializer_range=0.15,
        tie_word_embeddings=False, **_shape,
    ),
}  # fmt: skip

# eps is large because ranks add in another order: where a gradient is rounding noise (BLOOM's key biases move no loss),
# Adam with 1e-8 would turn the noise into steps of full size.
SHARED = {
    "lang": "ne", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 2, "max_warmup_steps": 0, "weight_decay": 0.1,
    "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "batch_size": 7, "epochs": 2, "max_length": 64,
    "tokens_per_microbatch": 64,
}  # fmt: skip
OF_STAGE = {
    "sft": (SFTSettings, {"max_steps": 5}),
    "pretrain": (PretrainSettings, {"max_steps": 5, "max_length": 16, "schedule": "wsd"}),
    "reward": (RewardSettings, {"batch_size": 2, "max_steps": 5, "tokens_per_microbatch": 150, "top_layers": 2}),
    "dpo": (DPOSettings, {"batch_size": 2, "max_steps": 5, "tokens_per_microbatch": 150, "top_layers": "2"}),
    "ppo": (PPOSettings, {
        "batch_size": 5, "max_steps": 2, "tokens_per_microbatch": 80, "top_layers": "2", "max_new_tokens": 12,
        "minibatch_size": 3, "ppo_epochs": 2, "slots": 3,
        "reward": "tests.engine.training.trainers:share_of_even_words",
    }),
}  # fmt: skip


def settings(stage: str, **changes: Any) -> tuple[RunSettings, OptimizerSettings, BatchSettings, Any]:
    """The four groups of a stage's settings; changes name their fields."""
    own, values = OF_STAGE[stage]
    values = {**SHARED, **values, **changes}
    groups = [TextRunSettings if stage == "pretrain" else RunSettings, OptimizerSettings, BatchSettings, own]
    names = [{f.name for f in dataclasses.fields(group)} for group in groups]
    assert set(values) <= set.union(*names), set(values) - set.union(*names)
    return tuple(group(**{k: v for k, v in values.items() if k in own}) for group, own in zip(groups, names))


def tiny_model(family: str, layers: int = 3, seed: int = 0) -> Bloom | Llama:
    """Random float32 weights, far enough from zero that every layer shows in the logits."""
    count = {"bloom": "n_layer", "llama": "num_hidden_layers"}[family]
    return build_model(CONFIGS[family](**{count: layers}), seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: word 4 is "w4", and so on."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<pad>": 3}
    vocabulary |= {f"w{i}": i for i in range(FIRST_WORD, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def words(rng: random.Random, count: int, below: int = VOCABULARY) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_WORD, below) for _ in range(count))


def sft_examples(count: int = 15, seed: int = 1) -> list[Example]:
    """Sequences of 2 to 60 tokens, prompts of 1 to 40."""
    rng, examples = random.Random(seed), []
    for i in range(count):
        prompt = words(rng, rng.choice([1, 2, 5, 12, 40]))
        examples.append(Example(f"e{i}", (*prompt, *words(rng, rng.choice([0, 1, 3, 9, 19])), EOS), len(prompt)))
    return examples


def rankings(count: int = 5, seed: int = 2) -> list[RankedExamples]:
    """2 to 5 responses of 1 to 16 tokens to each prompt, ties among them but never all."""
    rng, made = random.Random(seed), []
    for i in range(count):
        prompt, responses = words(rng, rng.choice([1, 3, 9])), rng.choice([2, 3, 4, 5])
        examples = tuple(
            Example(f"r{i}", (*prompt, *words(rng, rng.randrange(16)), EOS), len(prompt)) for _ in range(responses)
        )
        ranks = [1, *(rng.randrange(1, 4) for _ in examples[2:]), 3]
        made.append(RankedExamples(f"r{i}", examples, tuple(rng.sample(ranks, len(ranks)))))
    return made


def prompts(count: int = 9, seed: int = 3) -> list[Prompt]:
    """Prompts of 1 to 30 tokens."""
    rng = random.Random(seed)
    tokens = [words(rng, rng.choice([1, 2, 4, 9, 30])) for _ in range(count)]
    return [Prompt(f"p{i}", t, " ".join(f"w{x}" for x in t), "") for i, t in enumerate(tokens)]


def share_of_even_words(prompt: str, response: str) -> float:
    """A reward: the share of words of even number, -1 for an empty response."""
    numbers = [int(word[1:]) for word in response.split() if word.startswith("w")]
    return sum(n % 2 == 0 for n in numbers) / len(numbers) if numbers else -1.0


def share_of_even_words_plus_5(prompt: str, response: str) -> float:
    """The same reward on another level, which must teach the same."""
    return share_of_even_words(prompt, response) + 5.0


def constant_reward(prompt: str, response: str) -> float:
    """A reward that teaches nothing."""
    return 1.0


def ds_config(name: str) -> dict[str, Any]:
    """One of ds_configs/, with ZeRO-3 taking even tiny weights apart."""
    if name == "zero0":
        return {}
    config = json.loads((DSCONFIGS / f"{name}.json").read_text())
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


class RecordedRun(Run):
    """A run that also keeps what it logs, on every rank: steps apart from measurements of held-out data."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.rows: list[dict[str, float]] = []
        self.measured: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if any(name.startswith(("eval/", "heldout/")) for name in metrics):
            self.measured.append((step, dict(metrics)))
        else:
            self.rows.append(without_clock(metrics))
        super().log(step, metrics)


def without_clock(metrics: Mapping[str, float]) -> dict[str, float]:
    """What does not depend on how fast the machine is: all but the names that start with time/, and eps."""
    return {k: v for k, v in metrics.items() if not k.startswith("time/") and k != "eps"}


def make_trainer(
    stage: str, world: World, folder: Path, family: str = "bloom", zero: str = "zero0", layers: int = 3,
    model: torch.nn.Module | None = None, data: Sequence[Any] | None = None, heldout: Sequence[Any] | None = None,
    score_weight_D: Tensor | None = None, eos_ids: Sequence[int] = (EOS,), texts: Sequence[Sequence[str]] | None = None,
    **changes: Any,
) -> SFTTrainer | RewardTrainer | DPOTrainer | PPOTrainer:  # fmt: skip
    """A trainer ready to train; `changes` are settings."""
    if stage == "pretrain":
        changes = {**changes, "data": data}  # files
    groups = settings(stage, **changes)
    run = RecordedRun(folder, stage, groups, world)
    run.start()
    model = model or tiny_model(family, layers)
    if stage != "pretrain":
        own = groups[-1]
        if "int" in own.trunk_dtype + own.embedding_dtype:
            quantise_trunk(model, own.quantised_layers(model.num_layers), own.trunk_dtype, own.embedding_dtype)
    context = Context(*groups, world, run, Console(enabled=False), ds_config(zero))
    if stage == "sft":
        return SFTTrainer(model, data or sft_examples(), heldout or [], context)
    if stage == "pretrain":
        return pretrain_trainer(model, groups, world, run, zero)
    if stage == "dpo":
        return DPOTrainer(model, data or rankings(), rankings(4, 5) if heldout is None else heldout, context)
    if stage == "reward":
        if score_weight_D is None:
            score_weight_D = 0.3 * torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(4))
        heldout = rankings(4, 5) if heldout is None else heldout
        return RewardTrainer(model, score_weight_D, data or rankings(), heldout, context)
    tokenizer, ppo = tiny_tokenizer(), groups[-1]
    split = split_of(ppo.top_layers, model.num_layers)
    scorer = load_rewards(ppo.rewards, model, split, tokenizer, groups[2].tokens_per_microbatch, ppo.reward_offload)
    text = None
    if texts:
        sources, seed = parse_sources(ppo.ptx_data), groups[0].seed
        text = Pretraining.of(sources, texts, tokenizer, groups[2].max_length, seed, ppo.ptx_coef, ppo.ptx_tokens)
    return PPOTrainer(model, tokenizer, eos_ids, data or prompts(), scorer, context, heldout or (), text)


def pretrain_trainer(
    model: torch.nn.Module, groups: tuple[Any, ...], world: World, run: Run, zero: str
) -> PretrainTrainer:
    """A trainer on the text files of the settings, tokenised in the run's folder."""
    tokenizer, length = tiny_tokenizer(), groups[2].max_length
    sources, paths = groups[0].sources, groups[0].eval_data or []
    files = tokenise(sources, tokenizer, run.path / "tokens", world, Console(enabled=False))
    corpus = Corpus(sources, files, length)
    heldout = [HeldOutText.read(n, p, tokenizer, length, 10_000) for n, p in zip(names_of_files(paths), paths)]
    context = Context(*groups, world, run, Console(enabled=False), ds_config(zero), corpus.mixture)
    return PretrainTrainer(model, corpus, heldout, context)


def train(trainer: SFTTrainer | RewardTrainer | DPOTrainer | PPOTrainer) -> dict[str, Any]:
    """Train and save as the launchers do. Returns what came of it on this rank:

    rows     what was logged in each step, without the clock
    measured (steps taken, what was measured of held-out data then)
    result   what train() returned
    weights  those of the trained model, with the score or value head
    held     the share of the wrapped module's weights that this rank holds between steps: 1, or about none in ZeRO-3
    """
    result = trainer.train()
    trainer.run.finish(result)
    state = trainer.zero.state_dict()
    heads = {k: v for k, v in state.items() if k.startswith(("score.", "value.", "critic.", "factors."))}
    frozen = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
    module = trainer.zero.module
    body = body_weights(state)
    if isinstance(module, LoraModule):
        body = {name: read() for name, read in module.merged(trainer.model, state).items()}
    weights = frozen | body | heads
    if isinstance(trainer, PPOTrainer):
        weights = heads
        weights |= {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
        if trainer.world.is_first:
            save_model(trainer.model, trainer.run.model_dir, trainer.tokenizer)
    else:
        moments = (result["score_mean"], result["score_std"]) if "score_mean" in result else None
        save_trained(
            trainer.zero, trainer.model, trainer.run.model_dir, tiny_tokenizer(), trainer.world, score_moments=moments
        )
    held = sum(p.numel() for p in trainer.zero.module.parameters()) / sum(v.numel() for v in state.values())
    run = trainer.run
    return {"rows": run.rows, "measured": run.measured, "result": result, "weights": weights, "held": held}


Cases = Mapping[str, Mapping[str, Any]]


def outcomes(stage: str, folder: Path, cases: Cases) -> dict[str, dict[str, Any]]:
    """`train` for each named case on the ranks there are: starting a process costs more than a tiny training."""
    world = start_world()
    return {name: train(make_trainer(stage, world, folder / name, **case)) for name, case in cases.items()}


def check_two_ranks(stage: str, folder: Path, cases: Cases) -> None:
    """Each case on two ranks against the same on one, ZeRO left out: numbers logged, weights, and what was saved."""
    two_ranks = run_ranks(outcomes, 2, stage, folder / "two", cases)
    with one_rank() as world:
        for name, case in cases.items():
            one = train(make_trainer(stage, world, folder / "one" / name, **{**case, "zero": "zero0"}))
            for two in (rank[name] for rank in two_ranks):
                assert_same_rows(two["rows"], one["rows"], name)
                measured = [[{**row, "step": step} for step, row in side["measured"]] for side in (two, one)]
                assert_same_rows(*measured, name)
                assert_same_weights(two["weights"], one["weights"], 1e-6)
                assert two["held"] <= 0.01 if case["zero"].startswith("zero3") else two["held"] == 1
            saved = load_model(folder / "two" / name / "model").state_dict()
            weights = two_ranks[0][name]["weights"]
            assert saved and all(torch.equal(weight, weights[key]) for key, weight in saved.items()), name


@contextmanager
def one_rank() -> Iterator[World]:
    """A world of this process alone, taken down afterwards without a trace in the environment or in DeepSpeed."""
    before = dict(os.environ)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    try:
        yield start_world()
    finally:
        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # unlike torch's own, this forgets the groups DeepSpeed keeps
        os.environ.clear()
        os.environ.update(before)


def logits_of(model: Bloom | Llama, sequence: Sequence[int]) -> Tensor:
    """float32 [T, V] of one sequence alone."""
    batch = PackedBatch.from_sequences([sequence])
    return linear_logits(model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)), model.head_weight)


def assert_same_rows(actual: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]], name: str) -> None:
    """Losses equal to 1e-6 and all else that is logged to 5e-6, of its size or of 1, whichever is larger.

    KL and gradient norms are sums of many terms, so they carry more float32 rounding than a mean does.
    """
    assert len(actual) == len(expected)
    for step, (a, e) in enumerate(zip(actual, expected)):
        assert a.keys() == e.keys(), (name, step)
        for key in e:
            error = 1e-6 if key.startswith("loss/") else 5e-6
            assert abs(a[key] - e[key]) <= error * max(1.0, abs(e[key])), (name, step, key, a[key], e[key])


def assert_same_weights(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], error: float) -> None:
    """Every weight equal, up to `error` relative to the largest of its tensor or to 1."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        difference = (actual[name] - weight).abs().max() / max(1.0, float(weight.abs().max()))
        assert difference <= error, (name, float(difference))
