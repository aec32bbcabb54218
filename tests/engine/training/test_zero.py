"""DeepSpeed steps against plain PyTorch AdamW: uneven token counts, one and two ranks, every stage and offload."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.base.errors import UserError
from engine.distributed.world import start_world, stop_world
from engine.training.zero import AdamW, ZeroStep, read_ds_config
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
IN_BFLOAT16 = ["zero0", "zero1", "zero2", "zero3"]


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


def master_steps():
    """The specification in bfloat16: gradients summed, clipped and applied in float32, weights rounded after a step.

    On one thread, as in `run_ranks`: how a bfloat16 product is rounded depends on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _master_steps()
    finally:
        torch.set_num_threads(before)


def _master_steps():
    half = make_module().bfloat16()
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
            loss = (half(x.bfloat16()).float() - y).square().sum() / sum(rows)
            for master, gradient in zip(masters, torch.autograd.grad(loss, list(half.parameters()))):
                master.grad = gradient.float() if master.grad is None else master.grad + gradient.float()
        norms.append(float(nn.utils.clip_grad_norm_(masters, OPTIMIZER.max_grad_norm)))
        adamw.step()
        with torch.no_grad():
            for parameter, master in zip(half.parameters(), masters):
                parameter.copy_(master)
    return norms, dict(zip(half.state_dict(), masters)), half.state_dict()


def bfloat16_steps(names):
    """Return {name: (norms, masters and moments, weights)}."""
    world = start_world()
    steps = {name: _bfloat16_steps(world, load(name)) for name in names}
    stop_world()
    return steps


def _bfloat16_steps(world, config):
    zero = ZeroStep(make_module().bfloat16(), OPTIMIZER, world, config, torch.bfloat16)
    norms = []
    for step, rows in enumerate(ROWS):
        mine = range(2) if world.size == 1 else [world.rank]
        for m in mine:
            x, y = data(step, m)
            loss = (zero(x.bfloat16()).float() - y).square().sum() / sum(rows)
            zero.backward(loss, last=m == mine[-1])
        norms.append(zero.step(lr=0.01))
    return norms, zero.keep(), zero.state_dict()


@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_sums_gradients_and_keeps_masters_in_float32(ranks):
    """A gradient rounded once to bfloat16 on its way (over ranks, say) moves the norm by 1e-3, the masters by 1e-4."""
    norms, masters, weights = master_steps()
    of_first_rank = run_ranks(bfloat16_steps, ranks, IN_BFLOAT16)[0]
    assert list(of_first_rank) == IN_BFLOAT16
    for name, (got_norms, kept, state) in of_first_rank.items():
        assert_near(name, torch.tensor(got_norms), torch.tensor(norms), atol=0, rtol=1e-6)
        for key, master in masters.items():
            assert_near(name, kept[f"weight:{key}"], master.detach(), atol=1e-6, rtol=0)
            assert state[key].dtype == torch.bfloat16
            assert torch.equal(state[key], kept[f"weight:{key}"].bfloat16())
            assert_near(name, state[key], weights[key], atol=1e-4, rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_rank_holds_each_gradient_once(dtype, monkeypatch):
    """No gradients are joined and copied for a sum over ranks; a bfloat16 one goes as soon as its master has it."""
    with one_rank() as world:
        module = make_module().to(dtype)
        zero = ZeroStep(module, OPTIMIZER, world, {}, dtype)
        monkeypatch.setattr(zero.engine, "buffered_allreduce_fallback", lambda **_: pytest.fail("a sum over one rank"))
        for last in (False, True):
            zero.backward(zero(data(0, 0)[0].to(dtype)).float().square().sum(), last)
            assert all((p.grad is None) == (dtype == torch.bfloat16) for p in module.parameters())
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
