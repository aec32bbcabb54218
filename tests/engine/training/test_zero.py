"""DeepSpeed steps against plain PyTorch AdamW: uneven token counts, one and two ranks, every stage and offload."""

import json
import math
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from engine.base.errors import UserError
from engine.distributed.world import start_world, stop_world
from engine.training.ds_config import read_ds_config
from engine.training.loss_scale import LossScale
from engine.training.zero import AdamW, ZeroStep
from tests.engine.training.trainers import one_rank
from tests.ranks import run_ranks

CONFIGS = Path(__file__).parents[3] / "ds_configs"
OPTIMIZER = AdamW(weight_decay=0.1, max_grad_norm=0.5)
# Rows of each microbatch, [step][microbatch]; uneven on purpose, as packed batches are.
ROWS = [[3, 40], [1, 2], [17, 5], [30, 1], [2, 2]]


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 1))


def data(step, microbatch):
    g = torch.Generator().manual_seed(100 * step + microbatch)
    return torch.randn(ROWS[step][microbatch], 6, generator=g), torch.randn(ROWS[step][microbatch], 1, generator=g)


def plain_steps():
    """The specification: sum of squares over the global count, clipped, AdamW on matrices with decay."""
    module = make_module()
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps,
    )  # fmt: skip
    losses, norms = [], []
    for step, rows in enumerate(ROWS):
        loss = sum((module(x) - y).square().sum() for x, y in (data(step, m) for m in range(2))) / sum(rows)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.max_grad_norm)))
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses, norms, {k: v.detach() for k, v in module.state_dict().items()}


def zero_steps(names):
    """Return {name: (losses, norms, weights)}. Starting a process costs more than these steps, so it does all."""
    world = start_world()
    steps = {name: _zero_steps(world, load(name)) for name in names}
    stop_world()
    return steps


def _zero_steps(world, config):
    zero = ZeroStep(make_module(), OPTIMIZER, world, config, torch.float32)
    losses, norms = [], []
    for step, rows in enumerate(ROWS):
        mine = range(2) if world.size == 1 else [world.rank]
        loss_sum = torch.zeros(())
        for m in mine:
            x, y = data(step, m)
            loss = (zero(x) - y).square().sum() / sum(rows)
            zero.backward(loss, last=m == mine[-1])
            loss_sum += loss.detach()
        norms.append(zero.step(lr=0.01))
        losses.append(world.sum(loss_sum).item())
    return losses, norms, zero.state_dict()


def load(name):
    return {} if name == "zero0" else json.loads((CONFIGS / f"{name}.json").read_text())


ALL = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
IN_HALF = ["zero0", "zero1", "zero2", "zero3"]


def assert_near(name, actual, expected, **tolerances):
    torch.testing.assert_close(actual, expected, **tolerances, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_plain_pytorch(ranks):
    """Two ranks with 3 and 40 rows give the gradient of one rank with 43; every stage gives the same numbers."""
    losses, norms, state = plain_steps()
    for of_rank in run_ranks(zero_steps, ranks, ALL):
        assert list(of_rank) == ALL
        for name, (got_losses, got_norms, got_state) in of_rank.items():
            assert_near(name, torch.tensor(got_losses), torch.tensor(losses), atol=1e-6, rtol=1e-6)
            assert_near(name, torch.tensor(got_norms), torch.tensor(norms), atol=1e-5, rtol=1e-5)
            for key in state:
                assert_near(name, got_state[key], state[key], atol=1e-6, rtol=1e-5)


HALF = {torch.bfloat16: 1.0, torch.float16: 128.0}  # and a loss scale at which no gradient here overflows


def master_steps(dtype):
    """The specification: gradients summed, clipped and applied in float32, weights rounded after a step.

    On one thread, as in `run_ranks`: how a bfloat16 product is rounded depends on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _master_steps(dtype)
    finally:
        torch.set_num_threads(before)


def _master_steps(dtype):
    half = make_module().to(dtype)
    masters = [p.detach().float().requires_grad_() for p in half.parameters()]
    adamw = torch.optim.AdamW(
        [
            {"params": [m for m in masters if m.ndim > 1], "weight_decay": 0.1},
            {"params": [m for m in masters if m.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps,
    )  # fmt: skip
    norms = []
    for step, rows in enumerate(ROWS):
        adamw.zero_grad()
        for m in range(2):
            x, y = data(step, m)
            loss = HALF[dtype] * (half(x.to(dtype)).float() - y).square().sum() / sum(rows)
            for master, gradient in zip(masters, torch.autograd.grad(loss, list(half.parameters()))):
                gradient = gradient.float() / HALF[dtype]
                master.grad = gradient if master.grad is None else master.grad + gradient
        norms.append(float(nn.utils.clip_grad_norm_(masters, OPTIMIZER.max_grad_norm)))
        adamw.step()
        with torch.no_grad():
            for parameter, master in zip(half.parameters(), masters):
                parameter.copy_(master)
    return norms, dict(zip(half.state_dict(), masters)), half.state_dict()


def half_steps(names, dtype):
    """Return {name: (norms, masters and moments, weights, what is logged)}."""
    get_accelerator().is_fp16_supported = lambda: True  # DeepSpeed would refuse on this CPU; the arithmetic is right
    world = start_world()
    steps = {name: _half_steps(world, load(name), dtype) for name in names}
    stop_world()
    return steps


def _half_steps(world, config, dtype):
    zero, norms, step = ZeroStep(make_module().to(dtype), OPTIMIZER, world, config, dtype), [], 0
    while step < len(ROWS):
        mine = range(2) if world.size == 1 else [world.rank]
        for m in mine:
            x, y = data(step, m)
            loss = (zero(x.to(dtype)).float() - y).square().sum() / sum(ROWS[step])
            zero.backward(loss, last=m == mine[-1])
        norm = zero.step(lr=0.01)
        if not zero.overflowed:
            norms.append(norm)
            step += 1
    return norms, zero.keep(), zero.state_dict(), zero.numbers


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_sums_gradients_and_keeps_masters_in_float32(ranks, dtype):
    """A gradient rounded once to bfloat16 on its way (over ranks, say) moves the norm by 1e-3, the masters by 1e-4.

    In float16, the first loss scale is too large: the first step is taken once it is small enough, on all ranks.
    """
    norms, masters, weights = master_steps(dtype)
    of_first_rank = run_ranks(half_steps, ranks, IN_HALF, dtype)[0]
    assert list(of_first_rank) == IN_HALF
    for name, (got_norms, kept, state, logged) in of_first_rank.items():
        assert_near(name, torch.tensor(got_norms), torch.tensor(norms), atol=0, rtol=1e-6)
        for key, master in masters.items():
            assert_near(name, kept[f"weight:{key}"], master.detach(), atol=1e-6, rtol=0)
            assert state[key].dtype == dtype
            assert torch.equal(state[key], kept[f"weight:{key}"].to(dtype))
            assert_near(name, state[key], weights[key], atol=1e-4, rtol=2**-7)
        if dtype == torch.float16:
            assert 1.0 < logged["loss_scale"] == kept["loss_scale"][0] < 2.0**16
        else:
            assert not logged and "loss_scale" not in kept


def test_float16_keeps_gradients_that_would_round_to_zero():
    with one_rank() as world:
        zero = ZeroStep(make_module().half(), OPTIMIZER, world, {}, torch.float16)
        zero.backward(1e-7 * zero(data(0, 0)[0].half()).float().square().sum(), last=True)
        small = zero.step(lr=0.0)
        zero.backward(zero(data(0, 0)[0].half()).float().square().sum() / 256, last=True)
        assert small == pytest.approx(256e-7 * zero.step(lr=0.0), rel=1e-2)


def test_a_loss_scale_halves_at_overflow_doubles_after_good_steps_and_gives_up_on_bad_losses():
    with one_rank() as world:
        scale = LossScale(world)
        assert scale.overflowed(math.inf) and scale.value == 2.0**15
        assert not any(scale.overflowed(1.0) for _ in range(999)) and scale.value == 2.0**15
        assert not scale.overflowed(1.0) and scale.value == 2.0**16
        scale.saw(torch.tensor(False))
        assert not scale.overflowed(math.nan) and scale.value == 2.0**16
        other = LossScale(world)
        scale.overflowed(math.inf), scale.overflowed(1.0)
        other.restore(scale.state())
        assert (other.value, other.good) == (scale.value, scale.good) == (2.0**15, 1)
        assert [scale.overflowed(math.inf) for _ in range(17)] == [True] * 15 + [False] * 2 and scale.value == 1.0
        for _ in range(30_000):
            scale.overflowed(1.0)
        assert scale.value == 2.0**24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_rank_holds_each_gradient_once(dtype, monkeypatch):
    """No gradients are joined and copied for a sum over ranks; in half precision, a master takes each at once."""
    with one_rank() as world:
        module = make_module().to(dtype)
        zero = ZeroStep(module, OPTIMIZER, world, {}, dtype)
        monkeypatch.setattr(zero.engine, "buffered_allreduce_fallback", lambda **_: pytest.fail("a sum over one rank"))
        for last in (False, True):
            zero.backward(1e-3 * zero(data(0, 0)[0].to(dtype)).float().square().sum(), last)
            assert all((p.grad is None) == (dtype != torch.float32) for p in module.parameters())
        assert zero.step(lr=0.01) > 0
        assert all(p.grad is None for p in [*module.parameters(), *zero.engine.module.parameters()])


def test_setting_given_twice_is_an_error(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"gradient_clipping": 1.0}')
    with pytest.raises(UserError, match=r"ds.json sets 'gradient_clipping', which --max-grad-norm decides"):
        read_ds_config(str(path))


@pytest.mark.parametrize("text", ["{", "[1]", '{"zero_optimization": '])
def test_bad_file_gives_one_line(tmp_path, text):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError, match="ds.json"):
        read_ds_config(str(path))
