"""Bad model directories: each gives one line with the file and the next step."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from engine.base.errors import UserError
from engine.models import build_model, load_config, load_model, load_score_weight
from tests.engine.models.tiny import CONFIGS, ONE_OF_EACH, peer, rewrite_as_bin, rewrite_as_bin_shards


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


def change_scaling(path, **fields):
    change_config(path, rope_parameters={"rope_theta": 100.0, **fields})


def scaling_unknown(path):
    change_scaling(path, rope_type="su", factor=2.0)


def scaling_incomplete(path):
    change_scaling(path, rope_type="llama3", factor=2.0)


def yarn_without_factor(path):
    change_scaling(path, rope_type="yarn", original_max_position_embeddings=64)


def yarn_of_no_base(path):
    change_scaling(path, rope_type="yarn", factor=2.0, rope_theta=1.0)


def yarn_from_no_length(path):
    change_scaling(path, rope_type="yarn", factor=2.0, original_max_position_embeddings=0.5)


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
        (scaling_unknown, "config.json: rotary scaling 'su' is not supported: choose one of default"),
        (scaling_incomplete, "config.json is not a valid llama config .*low_freq_factor"),
        (yarn_without_factor, "config.json is not a valid llama config .*'yarn': {'factor'}"),
        (yarn_of_no_base, "config.json: rope_theta is 1, rotary scaling 'yarn' takes its logarithm: give more than 1"),
        (yarn_from_no_length, r"rope_parameters.original_max_position_embeddings 0.5: give 1 or more"),
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
        if load is load_score_weight and damage in (scaling_unknown, yarn_of_no_base):
            continue  # reading the score head computes no rotary embedding
        with pytest.raises(UserError, match=said) as caught:
            load(directory)
        assert str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "ran its own code" not in capsys.readouterr().out


FULL = "full_attention"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gemma3", {"layer_types": [FULL]}, r"`num_hidden_layers` \(5\) must be equal .* `layer_types` \(1\)"),
        ("gemma3", {"layer_types": [FULL] * 4 + ["chunked_attention"]}, "has 'chunked_attention' in layer_types: supp"),
        ("cohere2", {"layer_types": [FULL] * 4 + ["new"]}, "not a valid cohere2 config .*`layer_types` entries must"),
        ("qwen2", {"layer_types": [FULL] * 6}, r"`num_hidden_layers` \(5\) must be equal .* `layer_types` \(6\)"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "has 2 no_rope_layers for 5 layers: give one for each layer"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 2, 1]}, "has 2 in no_rope_layers: supported are 0, 1"),
        ("gemma3", {"query_pre_attn_scalar": 0}, "has query_pre_attn_scalar 0: give a whole number from 1"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0: only models without it"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: only models without it"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True: only models without"),
        ("gemma3", {"hidden_activation": "silu"}, "the activation is 'silu': only gelu_pytorch_tanh is supported"),
        ("apertus", {"hidden_act": "silu"}, "the activation is 'silu': only xielu is supported"),
        ("cohere2", {"hidden_act": "gelu"}, "the activation is 'gelu': only silu is supported"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(name, changes, said, tmp_path):
    CONFIGS[name]().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=said) as caught:
        build_model(load_config(tmp_path), seed=0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
