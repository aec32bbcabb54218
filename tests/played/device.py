"""The played GPU: tensors whose device is cuda:0, in host memory and computed by the CPU's operations.

Import it before torch: torch asks once whether there is CUDA. It refuses what CUDA refuses (operations on mixed
devices), and counts (counts.py). Operations reach the device's dispatch key as on a GPU, after autograd and after
PyTorch has taken composite ones apart. What computes is the CPU's own operation on the same memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")


def library() -> Path:
    """Return the library of device.cpp, compiled once for each version of torch and kept in the cache folder."""
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    command = [
        os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{torch_folder}/include", str(SOURCE),
        f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-lc10", "-ltorch_cpu",
    ]  # fmt: skip
    version = (torch_folder / "version.py").read_bytes()
    key = hashlib.sha256(" ".join(command).encode() + version + SOURCE.read_bytes()).hexdigest()[:20]
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions")) / "okapi_played"
    path = folder / f"device-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:  # several processes may build it at the same time
            subprocess.run([*command, "-o", f"{draft}/device.so"], check=True)
            os.replace(f"{draft}/device.so", path)
    return path


assert "torch" not in sys.modules, "import tests.played.device before torch"
os.environ["TRITON_INTERPRET"] = "1"  # asked for when triton is imported
ctypes.CDLL(str(library()))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402
from triton.runtime import interpreter  # noqa: E402
from triton.runtime.interpreter import GridExecutor  # noqa: E402

from tests.played import graphs  # noqa: E402
from tests.played.counts import count  # noqa: E402

CUDA, aten = torch.device("cuda", 0), torch.ops.aten
_on_host, _on_gpu, _become = torch.ops.played.on_host, torch.ops.played.on_gpu, torch.ops.played.become
# Operations whose result, or its size, the host waits for.
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}


def host(x: Tensor) -> Tensor:
    """The same memory as a CPU tensor."""
    return _on_host(x) if x.is_cuda else x


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in arguments or results."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def launch(what: str, run: Callable[[], Any]) -> Any:
    """Count a launch, and let a graph that is being captured run it again. `run` works on host memory."""
    count("launches", what)
    made = run()
    graphs.record(run, tensors(made))
    return made


def wait(what: str) -> None:
    """Count a wait of the host for the device. RuntimeError while a graph is captured, as on a GPU."""
    graphs.refuse(what)
    count("waits", what)


def copy(what: str, waits: bool) -> None:
    """Count a copy between host and device. RuntimeError while a graph is captured: it would be frozen in the graph."""
    graphs.refuse(what)
    count("copies", what)
    if waits:
        wait(what)


def compute(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on tensors of the device, by the CPU's operation on the same memory.

    RuntimeError for mixed devices; a scalar tensor may lie on the host.
    """
    name = op._schema.name.removeprefix("aten::")
    if name == "_index_put_impl_":
        _check_index_put(*args)
    elif name != "index" and any(x.dim() and not x.is_cuda for x in tensors((args, kwargs))):  # index moves its indices
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some on cuda:0, some on cpu")
    if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        wait(name)
    kwargs = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items()}
    schema = op._schema.arguments
    given = {a.name: x for a, x in zip(schema, args)} | kwargs
    written = [given[a.name] for a in schema if a.alias_info and a.alias_info.is_write]
    # An output without elements is resized by the operation: it takes new memory.
    grows = {
        k: x for k, x in kwargs.items() if isinstance(x, Tensor) and any(x is y for y in written) and not x.numel()
    }
    host_args, host_kwargs = tree_map_only(Tensor, host, (args, kwargs))
    host_args = [_number(x, args) if isinstance(a.type, torch.TensorType) else x for a, x in zip(schema, host_args)]
    host_kwargs |= {k: torch.empty(0, dtype=x.dtype) for k, x in grows.items()}
    run = partial(INSTEAD.get(op, op), *host_args, **host_kwargs)
    made = run() if name in NO_LAUNCH else launch(str(op), run)
    for k, x in grows.items():
        _become(x, _on_gpu(host_kwargs[k]))
    if not written:
        return tree_map_only(Tensor, _on_gpu, made)
    returns = op._schema.returns
    assert all(r.alias_info for r in returns), op
    return None if not returns else written[0] if len(returns) == 1 else tuple(written)


def _number(x: Tensor | float, others: Sequence[Any]) -> Tensor:
    """A Python number that the dispatcher passes where a tensor is declared."""
    if isinstance(x, float):
        wide = any(isinstance(o, Tensor) and o.dtype == torch.float64 for o in others)
        return torch.tensor(x, dtype=torch.float64 if wide else torch.float32)
    return x if isinstance(x, Tensor) else torch.tensor(x)


def _rms_norm_backward(grad, x, shape, rstd, weight, mask):
    g = grad if weight is None else grad * weight
    last = tuple(range(-len(shape), 0))
    grad_x = rstd * (g - x * rstd.square() * (g * x).mean(last, keepdim=True))
    grad_weight = (grad * x * rstd).reshape(-1, *shape).sum(0) if mask[1] else torch.empty(0)
    return grad_x.to(x.dtype), grad_weight if weight is None else grad_weight.to(weight.dtype)


def _attention(q, k, v, bias, logsumexp, dropout=0.0, causal=False, *, scale=None):
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout, causal, scale=scale)
    return out, *(torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.int64, torch.int64))


# A CPU build takes these apart; a GPU has a kernel for each.
ONE_LAUNCH = ("aten::_foreach_", "aten::native_layer_norm", "aten::_fused_rms_norm")
NO_LAUNCH = {"_local_scalar_dense", "_fused_sdp_choice"}
INSTEAD: dict[Any, Callable[..., Any]] = {  # for what the CPU does not have, or does in another way
    aten.mm.dtype: lambda a, b, dtype: torch.mm(a.to(dtype), b.to(dtype)),
    aten.addmm.dtype_out: lambda x, a, b, dtype, *, out: torch.addmm(x, a.to(dtype), b.to(dtype), out=out),
    aten._fused_rms_norm_backward.default: _rms_norm_backward,
    aten._fused_sdp_choice.default: lambda *_, **__: SDPBackend.EFFICIENT_ATTENTION.value,
    aten._scaled_dot_product_efficient_attention.default: _attention,
}


def _check_index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, *_: Any) -> None:
    """Indices on the host are copied; a mask waits for its number of elements, unless one scalar fills it."""
    if not x.is_cuda or (values.dim() and not values.is_cuda):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but index_put_ got some on cuda:0, some on cpu"
        )
    for index in indices:
        if index is not None and not index.is_cuda:
            copy("index from the host", waits=True)
    masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
    if masks and not (len(masks) == 1 and values.numel() == 1 and not values.is_cuda):
        wait("index_put_ by a mask")


def copy_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten.copy_, where at least one side is on the device."""
    run = partial(host(to).copy_, host(source))
    if to.is_cuda and source.is_cuda:
        launch("aten.copy_", run)
        return to
    there = "to the device" if to.is_cuda else "to the host"
    on_host = source if to.is_cuda else to
    copy(f"copy {there}", waits=not non_blocking or not (to.is_cuda or on_host.is_pinned()))
    run()
    return to


def _register() -> list[torch.library.Library]:
    """Give the dispatch key CUDA its operations. They last as long as the returned objects."""
    warnings.filterwarnings("ignore", message="Warning only once for all operators")  # of what is replaced
    everything, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(compute, "CUDA")
    own.impl("copy_", copy_, "CUDA")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith(ONE_LAUNCH):
            packet, _, overload = name.removeprefix("aten::").partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            own.impl(name, partial(compute, op), "CUDA")
    return [everything, own]


def launch_triton(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
    """Run a Triton kernel in its interpreter. RuntimeError for a tensor on the host."""
    given = tensors((args, kwargs))
    if not given or not all(x.is_cuda for x in given):
        raise RuntimeError(f"Pointer argument of {executor.fn.__name__} cannot be accessed from Triton (cpu tensor?)")
    host_args, host_kwargs = tree_map_only(Tensor, host, (args, kwargs))
    launch(f"triton {executor.fn.__name__}", partial(_interpret, executor, *host_args, **host_kwargs))


def patch_once(function: Callable[..., Any]) -> SimpleNamespace:
    """The interpreter's replacement of triton.language, kept: it takes a third of the time to do it for each call."""
    seen = frozenset(
        m.__name__ for m in (interpreter.tl, interpreter.tl.core) if any(m is x for x in function.__globals__.values())
    )
    if seen not in _patched:
        _patched.add(seen)
        _patch_lang(function)
    return SimpleNamespace(restore=lambda: None)


_libraries = _register()
_interpret, GridExecutor.__call__ = GridExecutor.__call__, launch_triton
_patched: set[frozenset[str]] = set()
_patch_lang, interpreter._patch_lang = interpreter._patch_lang, patch_once
# The interpreter copies whole storages to the host and back; here they are there.
GridExecutor._init_args_hst = lambda executor, args, kwargs: (args, kwargs)
GridExecutor._restore_args_dev = lambda *_: None
torch.cuda._lazy_init = lambda: None
torch.cuda.set_device = lambda device: None  # there is one
torch.cuda.synchronize = lambda device=None: wait("synchronize")
torch.cuda.mem_get_info = lambda device=None: (1 << 28, 1 << 33)
torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda device=None: 0
torch.cuda.get_per_process_memory_fraction = lambda device=None: 1.0
torch.cuda.get_device_name = lambda device=None: "played GPU"
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132)
graphs.install()
