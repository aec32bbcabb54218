"""Checkpoints in: every layout of files and names that loads, and one line for every one that does not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.batch import PackedBatch
from engine.errors import UserError
from engine.models import load_model, load_score_weight
from tests.engine.models.tiny import CONFIGS, ONE_OF_EACH, SEQUENCES, assert_close, logits_of, peer, peer_logits

BATCH = PackedBatch.from_sequences(SEQUENCES)
PREFIX = {"bloom": "transformer.", "llama": "model."}

both_families = pytest.mark.parametrize("family", ONE_OF_EACH)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory of each family, as transformers writes it, and its logits."""
    written = {}
    for family, make in ONE_OF_EACH.items():
        path = tmp_path_factory.mktemp(family)
        model = peer(make())
        model.save_pretrained(path)
        written[family] = path, peer_logits(model, SEQUENCES)
    return written


@pytest.fixture
def directory(saved, family, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved[family][0], tmp_path / "model")


@torch.no_grad()
def assert_loads(path, saved, family):
    assert_close(logits_of(load_model(path), BATCH), saved[family][1], 1e-5)


def weights_of(path):
    return load_file(path / "model.safetensors")


def rewrite(path, tensors):
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def rewrite_as_bin(path, legacy=False):
    tensors = weights_of(path)
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def rewrite_as_bin_shards(path):
    tensors = weights_of(path)
    (path / "model.safetensors").unlink()
    weight_map = {name: f"pytorch_model-{1 + i % 2:05d}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@both_families
def test_sharded_safetensors(family, saved, tmp_path):
    peer(ONE_OF_EACH[family]()).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_loads(tmp_path, saved, family)


@both_families
@pytest.mark.parametrize("legacy", [False, True])
def test_one_bin_file(family, directory, saved, legacy):
    rewrite_as_bin(directory, legacy)
    assert_loads(directory, saved, family)


@both_families
def test_sharded_bin_files(family, directory, saved):
    rewrite_as_bin_shards(directory)
    assert_loads(directory, saved, family)


@both_families
def test_names_without_the_prefix(family, directory, saved):
    tensors = weights_of(directory)
    assert any(name.startswith(PREFIX[family]) for name in tensors)
    rewrite(directory, {name.removeprefix(PREFIX[family]): t for name, t in tensors.items()})
    assert_loads(directory, saved, family)


@pytest.mark.parametrize(
    ("family", "leftover"),
    [
        ("bloom", "h.0.self_attention.scale_mask_softmax.causal_mask"),
        ("bloom", "transformer.h.1.self_attention.masked_bias"),
        ("llama", "model.layers.4.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.inv_freq"),
    ],
)
def test_harmless_leftovers_are_passed_over(family, directory, saved, leftover):
    rewrite(directory, weights_of(directory) | {leftover: torch.ones(4)})
    assert_loads(directory, saved, family)


@pytest.mark.parametrize("family", ["bloom"])
def test_a_tied_head_may_be_stored_twice_but_not_differ(family, directory, saved):
    tensors = weights_of(directory)
    head = tensors["transformer.word_embeddings.weight"].clone()
    rewrite(directory, tensors | {"lm_head.weight": head})
    assert_loads(directory, saved, family)
    head[0, 0] += 1
    rewrite(directory, tensors | {"lm_head.weight": head})
    with pytest.raises(UserError, match="lm_head.weight that differs from the embedding"):
        load_model(directory)


@both_families
def test_every_weight_has_the_dtype_asked_for_and_trains(family, directory):
    model = load_model(directory, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert not list(model.buffers())


@both_families
def test_a_loaded_model_does_not_hang_on_its_files(family, directory, saved):
    model = load_model(directory)
    (directory / "model.safetensors").write_bytes(b"")  # what is still mapped now reads as nothing, or crashes
    with torch.no_grad():
        assert_close(logits_of(model, BATCH), saved[family][1], 1e-5)


def test_weights_that_do_not_fit_are_one_error_that_lists_all(tmp_path):
    peer(CONFIGS["llama, tied"]()).save_pretrained(tmp_path)
    tensors = weights_of(tmp_path)
    del tensors["model.layers.2.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(48)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(80, 47)
    rewrite(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "missing 2 (model.layers.2.self_attn.k_proj.weight, model.norm.weight)" in message
    assert "unused 1 (model.layers.0.self_attn.q_proj.bias)" in message
    assert "another shape 1 (model.layers.1.mlp.up_proj.weight (80, 47) instead of (80, 48))" in message
    assert "\n" not in message


@both_families
def test_long_lists_are_cut_with_a_count(family, directory):
    config = json.loads((directory / "config.json").read_text())
    config["n_layer" if family == "bloom" else "num_hidden_layers"] = 4
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing none; unused \d+ \(([^,]+, ){7}[^,]+ and \d+ more\)"):
        load_model(directory)


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
    """Would run code where pickles are trusted."""

    def __reduce__(self):
        return (print, ("this file ran its own code",))


def bin_with_code(path):
    rewrite_as_bin(path)
    torch.save({"model.norm.weight": Unwelcome()}, path / "pytorch_model.bin")


def bin_with_other_things(path):
    rewrite_as_bin(path)
    torch.save({"step": 3, "model": {}}, path / "pytorch_model.bin")


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (not_a_directory, "model is not a directory"),
        (no_config, "has no config.json"),
        (config_cut_short, "config.json cannot be read as JSON"),
        (config_is_a_list, "config.json holds a JSON list"),
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
def test_a_bad_directory_is_one_line_that_names_it(family, directory, damage, said, capsys):
    damage(directory)
    for load in (load_model, load_score_weight):
        if load is load_score_weight and damage is scaling_unknown:
            continue  # the score head needs no rotary embedding
        with pytest.raises(UserError, match=said) as caught:
            load(directory)
        assert str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "ran its own code" not in capsys.readouterr().out
