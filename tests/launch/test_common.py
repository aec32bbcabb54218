"""What launchers share."""

import pytest
import torch

from launch import common

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu_without_bfloat16_is_float16(monkeypatch, has_it, dtype):
    said = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    assert common.choose_dtype("auto", GPU, said.append) == dtype
    assert said == ["this GPU has no bfloat16: --dtype float16, with a loss scale"] * (not has_it)


def test_float16_on_a_cpu_is_said():
    said = []
    assert common.choose_dtype("float16", CPU, said.append) == torch.float16 and "--dtype float32" in said[0]


@pytest.mark.parametrize(("name", "device", "slow"), [
    ("bfloat16", CPU, True), ("bfloat16", GPU, False), ("float32", CPU, False), ("auto", CPU, False),
])  # fmt: skip
def test_bfloat16_on_a_cpu_without_instructions_for_it_is_said(monkeypatch, name, device, slow):
    said = []
    monkeypatch.setattr(common, "multiplies_bfloat16", lambda: False)
    dtype = common.choose_dtype(name, device, said.append)
    assert dtype == (torch.float32 if name in ("float32", "auto") else torch.bfloat16)
    assert [text[:50] for text in said] == ["warning: this CPU has no instructions for bfloat16"] * slow
    monkeypatch.setattr(common, "multiplies_bfloat16", lambda: True)
    common.choose_dtype(name, device, said.append)
    assert len(said) == slow
