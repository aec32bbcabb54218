"""Bad model directories: each gives one line with the file and the next step."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from engine.base.errors import UserError
from engine.models import load_model, load_score_weight
from tests.engine.models.tiny import ONE_OF_EACH, peer, rewrite_as_bin, rewrite_as_bin_shards


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good")
    peer(ONE_OF_EACH["llama"]()).save_pretrained(path)
    return path


@pytest.fixture
def directory(good, tmp_path):
    """Return a copy for a test to damage."""
    return shutil.copytree(good, tmp_path / "model")


def not_a_directory(path):
    shutil.rmtree(path)


def no_config(path):
    (path / "config.json").unlink()


def config_cut_short(path):
    (path / "config.json").write_text('{"model_type": "llama", ')


def config_is_a_list(path):
    (path / "config.json").write_text("[1, 2]")


def config_is_no_text(path):
    (path / "config.json").write_bytes(b"\xff\xfe\xff")


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def other_model_type(path):
    change_config(path, model_type="gpt2")


def no_model_type(path):
    change_config(path, model_type=None)


def field_of_wrong_type(path):
    change_config(path, hidden_size="wide")


def scaling_unknown(path):
    change_config(path, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0})


def scaling_incomplete(path):
    change_config(path, rope_parameters={"rope_type": "llama3", "factor": 2.0, "rope_theta": 100.0})


def no_weights(path):
    (path / "model.safetensors").unlink()


def safetensors_cut_short(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def safetensors_empty(path):
    (path / "model.safetensors").write_bytes(b"")


def shard_missing(path):
    rewrite_as_bin_shards(path)
    (path / "pytorch_model-00002-of-00002.bin").unlink()


def index_cut_short(path):
    rewrite_as_bin_shards(path)
    (path / "pytorch_model.bin.index.json").write_text('{"weight_map"')


def index_without_map(path):
    rewrite_as_bin_shards(path)
    (path / "pytorch_model.bin.index.json").write_text('{"weight_map": [1]}')


def bin_cut_short(path):
    rewrite_as_bin(path)
    file = path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])


def legacy_bin_cut_short(path):
    rewrite_as_bin(path, legacy=True)
    file = path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])


def bin_empty(path):
    rewrite_as_bin(path)
    (path / "pytorch_model.bin").write_bytes(b"")


class Unwelcome:
    """Unpickling it runs code."""

    def __reduce__(self):
        return (print, ("this file ran its own code",))


def bin_with_code(path):
    rewrite_as_bin(path)
    torch.save({"model.norm.weight": Unwelcome()}, path / "pytorch_model.bin")


def bin_with_other_things(path):
    rewrite_as_bin(path)
    torch.save({"step": 3, "model": {}}, path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (not_a_directory, "model is not a directory"),
        (no_config, "has no config.json"),
        (config_cut_short, "config.json cannot be read as JSON"),
        (config_is_a_list, "config.json must hold one JSON object, not list"),
        (config_is_no_text, "config.json cannot be read as JSON"),
        (other_model_type, "config.json has model_type 'gpt2': supported are bloom, llama"),
        (no_model_type, "config.json has model_type None"),
        (field_of_wrong_type, "config.json is not a valid llama config .*hidden_size"),
        (scaling_unknown, "config.json: rotary scaling 'yarn' is not supported"),
        (scaling_incomplete, "config.json is not a valid llama config .*low_freq_factor"),
        (no_weights, "holds no weights: expected one of model.safetensors"),
        (safetensors_cut_short, "model.safetensors is cut short"),
        (safetensors_empty, "model.safetensors is cut short"),
        (shard_missing, "index.json names 1 files that are not there, first pytorch_model-00002-of-00002.bin"),
        (index_cut_short, "index.json cannot be read as JSON"),
        (index_without_map, "index.json has no weight_map"),
        (bin_cut_short, "pytorch_model.bin is cut short"),
        (legacy_bin_cut_short, "pytorch_model.bin is cut short"),
        (bin_empty, "pytorch_model.bin is cut short"),
        (bin_with_code, "pytorch_model.bin is cut short or not plain weights"),
        (bin_with_other_things, "pytorch_model.bin is not a table of tensors"),
    ],
)
def test_bad_directory_is_one_line_with_its_path(directory, damage, said, capsys):
    damage(directory)
    for load in (load_model, load_score_weight):
        if load is load_score_weight and damage is scaling_unknown:
            continue  # reading the score head computes no rotary embedding
        with pytest.raises(UserError, match=said) as caught:
            load(directory)
        assert str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "ran its own code" not in capsys.readouterr().out
