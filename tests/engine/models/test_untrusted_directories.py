"""Untrusted model directories: no path leads outside, no code runs, no size is believed without its bytes."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from engine.base.errors import UserError
from engine.models import load_model
from engine.models.hf import load_config
from engine.models.weight_files import read_weights, write_weights
from tests.engine.models.tiny import ONE_OF_EACH, peer

TENSORS = {"a": torch.arange(4.0), "b": torch.ones(4)}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    """Return a directory with one tensor per shard; a second one lies beside it."""
    for name in ("model", "elsewhere"):
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name, TENSORS, 16)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good")
    peer(ONE_OF_EACH["llama"]()).save_pretrained(path)
    return path


def point(shards, name):
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["b"] = name
    (shards / INDEX).write_text(json.dumps(index))


def refusal(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../elsewhere/model-00001-of-00002.safetensors", "/etc/passwd", "..", ".", "", "a/b", "x\0", "x" * 300]
)
def test_index_names_only_files_of_its_folder(shards, name):
    assert set(read_weights(shards)) == {"a", "b"}
    point(shards, name)
    assert "outside its folder: copy the weights into the folder" in refusal(read_weights, shards)


def test_link_out_of_the_folder_is_refused(shards):
    part = shards / "model-00002-of-00002.safetensors"
    part.rename(shards / "inside.safetensors")
    part.symlink_to("inside.safetensors")
    assert set(read_weights(shards)) == {"a", "b"}
    part.unlink()
    part.symlink_to("../elsewhere/model-00002-of-00002.safetensors")
    assert "outside its folder" in refusal(read_weights, shards)


def test_links_of_the_hugging_face_cache_are_followed(shards, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(shards.iterdir())):
        shutil.copy(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    assert set(read_weights(snapshot)) == {"a", "b"}


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 100_000_001, 9])
def test_false_header_length_is_refused(tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert "is cut short or no safetensors file" in refusal(read_weights, tmp_path)


def test_tensors_outside_their_file_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    for entry in ({"shape": [2**62], "data_offsets": [0, 4]}, {"shape": [1], "data_offsets": [0, 2**40]}):
        header = json.dumps({"a": {"dtype": "F32", **entry}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
        assert "is cut short or no safetensors file" in refusal(read_weights, tmp_path)


def test_integer_weights_are_refused(tmp_path):
    save_file({"a": torch.ones(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert "holds 'a' as I8: give weights in F64, F32, F16, BF16" in refusal(
        lambda p: read_weights(p)["a"].read(), tmp_path
    )


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(1).expand(10**12),
        torch.ones(2, 2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, device="meta"),
        3,
    ],
    ids=["one element expanded to 10^12", "sparse", "quantised", "meta", "not a tensor"],
)
def test_bin_file_with_other_tensors_is_refused(tmp_path, odd):
    torch.save({"a": torch.ones(2), "b": odd}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin is not a table of tensors" in refusal(read_weights, tmp_path)


def test_compressed_bin_file_is_refused(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (tmp_path / "packed").replace(file)
    assert file.stat().st_size < 10_000
    assert "is compressed, torch writes weights as they are" in refusal(read_weights, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "names code of its own (auto_map)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000: give a whole number from 1 to 4,096"),
        ({"hidden_size": 3 * 2**20}, "hidden_size 3145728: give a whole number from 1 to 1,048,576"),
        ({"hidden_size": 1001}, "hidden size (1001) is not a multiple"),
        ({"vocab_size": 0}, "vocab_size 0: give a whole number from 1 to 16,777,216"),
        ({"num_attention_heads": -2}, "num_attention_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps -1.0: give a number from 0 to 100"),
        ({"initializer_range": 1e30}, "initializer_range"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta -1.0: give a number above 0"),
        ({"dtype": []}, "is not a valid llama config"),
        ({"model_type": ["llama"]}, "model_type ['llama']: supported are"),
        ({"model_type": {"a": "x" * 10_000}}, "supported are"),
    ],
)
def test_unreasonable_config_values_are_refused(good, tmp_path, changes, words):
    folder = shutil.copytree(good, tmp_path / "model")
    load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    line = refusal(load_config, folder)
    assert words in line
    assert len(line) < 700
