"""The fixed configs of the Triton kernels: which one a device gets, by its shared memory."""

import pytest

pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")

from kernels.attention import fused as attention
from kernels.common import triton as common
from kernels.common.triton import Config, chosen, fitting, trying
from kernels.linear_logprob import fused as linear_logprob

TABLES = {**attention.CONFIGS, **linear_logprob.CONFIGS}
KIB = {"A100": 163, "RTX 3090 and 4090": 99, "H100": 227}  # of shared memory that a block may take


class Properties:
    shared_memory_per_block_optin = 99 * 1024


def test_the_first_that_fits():
    large, middle, small = (Config({"M": m}, 4, 2, m) for m in (128, 99, 64))
    assert fitting([large, middle, small], 163 * 1024) is large
    assert fitting([large, middle, small], 99 * 1024) is middle
    assert fitting([large, middle, small], 48 * 1024) is small  # Triton then says what is missing


def test_by_the_device_and_without_a_device_in_the_interpreter(monkeypatch):
    configs = [Config({"M": m}, 4, 2, m) for m in (128, 64, 16)]
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Properties)
    assert chosen(configs, "cuda") is configs[1]
    monkeypatch.setattr(common, "INTERPRET", common.tl.constexpr(True))
    assert chosen(configs, "cuda") is configs[2]


def test_another_is_tried_and_put_back():
    configs = [Config({"M": m}, 4, 2, 16) for m in (1, 2, 3)]
    with trying(configs, 2):
        assert [c.sizes["M"] for c in configs] == [3, 1, 2]
    assert [c.sizes["M"] for c in configs] == [1, 2, 3]


@pytest.mark.parametrize("device", KIB)
@pytest.mark.parametrize("key", TABLES, ids=str)
def test_no_device_falls_back_to_the_config_of_the_interpreter(key, device):
    configs = TABLES[key]
    assert fitting(configs, KIB[device] * 1024) is not configs[-1]
    assert device == "RTX 3090 and 4090" or fitting(configs, KIB[device] * 1024) is configs[0]
