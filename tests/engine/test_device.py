"""Which device a process gets, and the line that says why it cannot work."""

import os
import threading
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from engine import device
from engine.base.errors import UserError
from engine.device import be_deterministic, check_triton, choose_device, use, why_unseen
from launch.common import check_size, choose_dtype

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs. Returns the (thread, GPU) pairs that were made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda it: current.append((threading.current_thread().name, it)))
    monkeypatch.setattr(device, "check_triton", lambda: None)
    return current


@pytest.fixture
def unseen_gpu(monkeypatch, tmp_path):
    """A machine with an NVIDIA driver whose GPU PyTorch does not see."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02")
    monkeypatch.setattr(device, "DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_each_rank_gets_its_own_gpu(two_gpus):
    assert choose_device(1) == torch.device("cuda", 1)
    assert two_gpus == [("MainThread", torch.device("cuda", 1))]
    with pytest.raises(UserError, match="rank 2 of this host has no GPU, 2 are visible: give deepspeed --num_gpus 2"):
        choose_device(2)


def test_tests_run_on_the_cpu():
    assert choose_device() == CPU and torch.cuda.device_count() == 0


def test_a_cpu_is_not_made_current(two_gpus):
    use(CPU)
    assert two_gpus == []


@pytest.mark.parametrize(("compiler", "header", "missing"), [
    (False, True, "without a C compiler"), (True, False, "without Python.h"),
    (False, False, "without a C compiler .* and Python.h"),
])  # fmt: skip
def test_triton_without_its_tools_is_said_before_any_work(monkeypatch, tmp_path, compiler, header, missing):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}" if compiler else None)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(device, "_driver_is_built", lambda: False)
    if header:
        (tmp_path / "Python.h").touch()
    with pytest.raises(UserError, match=f"Triton cannot compile our kernels for a GPU {missing}"):
        check_triton()
    monkeypatch.setattr(device, "_driver_is_built", lambda: True)  # by an earlier run: it is cached
    check_triton()


def test_triton_with_its_tools_is_not_tried(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(device.Path, "is_file", lambda path: path.name == "Python.h")
    monkeypatch.setattr(device, "_driver_is_built", lambda: pytest.fail("it takes a second"))
    check_triton()


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        check_triton()


def test_a_gpu_that_pytorch_does_not_see_is_said(unseen_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "needs a driver for CUDA 13.0" in why_unseen()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built for the CPU" in why_unseen()
    said = []
    choose_dtype("auto", CPU, said.append)
    assert len(said) == 1 and said[0].startswith("warning: this machine has a GPU, but the run is on the CPU.")


def test_a_hidden_or_absent_gpu_is_not_said(unseen_gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_unseen() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(device, "DRIVER", Path("/nowhere"))
    assert why_unseen() is None


def test_a_large_model_beside_an_unseen_gpu_is_refused(unseen_gpu):
    large = LlamaConfig()  # of 7B
    with pytest.raises(UserError, match="base has 6.7 billion weights and would run on the CPU"):
        check_size(large, Path("base"), CPU)
    check_size(LlamaConfig(num_hidden_layers=1, vocab_size=100), Path("base"), CPU)
    check_size(large, Path("base"), torch.device("cuda", 0))


def test_a_large_model_on_a_machine_without_a_gpu_is_not_refused(monkeypatch):
    monkeypatch.setattr(device, "DRIVER", Path("/nowhere"))
    check_size(LlamaConfig(), Path("base"), CPU)


def test_a_deterministic_run_adds_in_a_fixed_order(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which removes it afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        be_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
