"""Peak memory of a PPO iteration on a real model with each way to store its frozen weights, beside the plan."""

from __future__ import annotations

import gc

import pytest
import torch

from engine.models import fused, load_model
from engine.models.quantised import quantise_trunk, stored_weights
from engine.planning.memory import Workload, memory, peaks
from engine.planning.memory_tracker import MemoryTracker
from engine.text.encoding import Prompt
from engine.training.metrics import Metrics
from kernels import coded_linear
from kernels.linear_logprob import cpu as linear_logprob_cpu
from tests.engine.training.trainers import make_trainer, one_rank

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]
ROLLOUTS, PROMPT, NEW = 16, 24, 24
MICROBATCH = ROLLOUTS * (PROMPT + NEW) // 2  # two of them: the second finds gradients of the first
NEVER = 5  # a token that is not sampled: every response has all of its tokens
BITS = [("model", "model"), ("int8", "model"), ("int4", "model"), ("int8", "int8"), ("int4", "int8")]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The model's own modules compute, PyTorch allocates all, and products with codes never hold a layer's values."""
    monkeypatch.setattr(linear_logprob_cpu, "library", lambda: None)
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    monkeypatch.setattr(coded_linear, "fits", lambda x_TI: True)
    monkeypatch.setattr(coded_linear, "coded_linear", lambda x, weight, bias: x.new_zeros(len(x), weight.shape[0]))


@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS)
def test_ppo(real, tmp_path, as_on_a_gpu, trunk_dtype, embedding_dtype):
    """`pytest -s` prints the numbers. For an update the plan adds up what is not there at once: up to 20 % too much."""
    name, folder = real
    model = load_model(folder)
    with torch.device("meta"):
        meta = type(model)(model.config)
    quantise_trunk(model, model.num_layers - 4, trunk_dtype, embedding_dtype)
    prompts = [Prompt(f"p{i}", tuple(1000 + 97 * i + j for j in range(PROMPT)), "", "") for i in range(ROLLOUTS)]
    with one_rank() as world, MemoryTracker() as tracker:
        tracker.know(weight for _, weight in stored_weights(model))
        trainer = make_trainer(
            "ppo", world, tmp_path / "run", model=model, data=prompts, batch_size=ROLLOUTS, minibatch_size=ROLLOUTS,
            slots=ROLLOUTS, max_new_tokens=NEW, max_length=PROMPT + NEW, top_layers="4", max_steps=3, epochs=3,
            tokens_per_microbatch=MICROBATCH, reward="engine.reward_functions:noise", eos_ids=(NEVER,),
        )  # fmt: skip
        trainer.iterate(0)  # optimizer state is there
        tracker.peak = tracker.live
        experience = trainer.collect(1, Metrics())
        rollout, tracker.peak = tracker.peak, tracker.live
        trainer.update(experience, range(ROLLOUTS), 1e-3, Metrics())
        update = tracker.peak
    w = Workload(
        "ppo", torch.float32, 1, 0, False, 4, ROLLOUTS, ROLLOUTS, PROMPT, NEW, MICROBATCH, True, False,
        False, 16.0, 2, trunk_dtype=trunk_dtype, embedding_dtype=embedding_dtype,
    )  # fmt: skip
    planned = peaks([part for part in memory(meta, w) if "reward" not in part.name])
    measured = (rollout, update)
    numbers = ", ".join(f"{m / 1e9:.3f} GB ({p / 1e9:.3f} planned)" for m, p in zip(measured, planned))
    print(f"\n{name}, layers {trunk_dtype}, embedding {embedding_dtype}: rollout, update {numbers}")
    del trainer, experience, model
    gc.collect()
    assert planned[0] == pytest.approx(rollout, rel=0.1)
    assert 0.95 * update <= planned[1] <= 1.2 * update
