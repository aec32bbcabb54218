"""The played device itself: it refuses and counts what a GPU would, and a graph keeps the numbers of its capture."""

import pytest
import torch

from tests.played import graphs
from tests.played.counts import counting
from tests.played.device import CUDA, launch_triton

MIXED = {
    "add": lambda x, y: x + y.cpu(),
    "product": lambda x, y: x @ y.cpu(),
    "in place": lambda x, y: x.mul_(y.cpu()),
    "gather": lambda x, y: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "index of a CPU tensor": lambda x, y: x.cpu()[torch.zeros(1, dtype=torch.int64, device=CUDA)],
    "embedding": lambda x, y: torch.nn.functional.embedding(torch.zeros(1, dtype=torch.int64), x),
    "values to put": lambda x, y: x.index_put_((torch.zeros(1, dtype=torch.int64, device=CUDA),), torch.ones(1, 2)),
    "numpy": lambda x, y: x.numpy(),
}
WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "put by a mask": lambda x: x.index_put_((x > 0,), torch.ones(1, device=CUDA)),
    "repeats": lambda x: x.repeat_interleave(torch.ones(2, dtype=torch.int64, device=CUDA), 0),
    "equal": lambda x: torch.equal(x, x),
    "tolist": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "a host tensor as index": lambda x: x[torch.tensor([0])],
    "a list as index": lambda x: x[[0, 1]],
    "a new tensor": lambda x: torch.tensor([1], device=CUDA),
}
NO_WAITS = {
    "scalars": lambda x: x * 2 + torch.tensor(1.0),
    "pinned, to the device": lambda x: torch.ones(2).pin_memory().to(CUDA, non_blocking=True),
    "to the device without waiting": lambda x: torch.ones(2).to(CUDA, non_blocking=True),
    "to pinned memory without waiting": lambda x: torch.empty(2, 2).pin_memory().copy_(x, non_blocking=True),
    "put a scalar by a mask": lambda x: x.masked_fill_(x > 0, 0.0),
    "repeats of known number": lambda x: x.repeat_interleave(
        torch.ones(2, dtype=torch.int32).to(CUDA, non_blocking=True), 0, output_size=2
    ),
}
VIEWS = [
    lambda x: x.T, lambda x: x[0], lambda x: x.view(4), lambda x: x[:, None].expand(2, 3, 2), lambda x: x.unbind(1),
    lambda x: x.split(1), lambda x: torch.empty_like(x), lambda x: x.detach(), lambda x: x.unfold(0, 1, 1),
]  # fmt: skip


@pytest.fixture
def x():
    return torch.tensor([[1.0, -2.0], [3.0, 4.0]], device=CUDA)


@pytest.mark.parametrize("what", MIXED)
def test_mixed_devices_are_refused(what, x):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        MIXED[what](x, torch.ones(2, 2, device=CUDA))


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_counted_and_refused_in_a_capture(what, x):
    with counting() as counts:
        WAITS[what](x)
    assert counts.totals()["waits"] > 0
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        graphs.capture(graphs.PlayedGraph()),
    ):
        WAITS[what](x)


@pytest.mark.parametrize("what", NO_WAITS)
def test_what_does_not_wait(what, x):
    with counting() as counts:
        NO_WAITS[what](x)
    assert counts.totals()["waits"] == 0


def test_launches():
    with counting() as counts:
        x = torch.ones(2, 2, device=CUDA)
        x.add_(x)
        torch.nn.functional.layer_norm(x, (2,))
        torch._foreach_mul_([x, x.clone()], 2.0)
    assert counts.totals() == {"launches": 5, "copies": 0, "waits": 0}
    with counting() as counts:
        for view in VIEWS:
            view(x)
    assert counts.totals() == {"launches": 0, "copies": 0, "waits": 0}


def test_views_share_memory(x):
    x.view(4)[1:3].copy_(torch.tensor([7.0, 8.0], device=CUDA))
    x[1].mul_(10)
    assert x.tolist() == [[1, 7], [80, 40]]


def test_gradients_and_the_optimizer_equal_the_cpus():
    def step(device):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3).to(device)
        x = torch.arange(6.0).reshape(2, 3).to(device).requires_grad_()
        (torch.nn.functional.rms_norm(layer(x), (3,)).softmax(-1)[:, :2] * x[:, 1:]).square().sum().backward()
        torch.optim.AdamW(layer.parameters(), fused=True).step()
        return [y.cpu() for y in (x.grad, layer.weight.grad, layer.weight.detach())]

    for found, known in zip(step(CUDA), step("cpu"), strict=True):
        torch.testing.assert_close(found, known)


def test_a_graph_keeps_the_numbers_of_its_capture():
    x, graph, factor = torch.ones(2, device=CUDA), graphs.PlayedGraph(), 3.0
    with counting() as counts, torch.cuda.graph(graph):
        y = (x * factor).cumsum(0)
        z = torch.arange(2, device=CUDA) + y
    factor = 5.0
    x.fill_(2.0)
    graph.replay()
    assert y.tolist() == [6, 12] and z.tolist() == [6, 13] and counts.totals()["launches"] == 4


def test_a_cpu_tensor_does_not_reach_a_triton_kernel(x):
    class Executor:
        fn = launch_triton

    with pytest.raises(RuntimeError, match="cannot be accessed from Triton"):
        launch_triton(Executor, x, torch.ones(1))
