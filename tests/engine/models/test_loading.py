"""Loading models: every layout of files and names, and weights that do not fit their config."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_model
from tests.engine.models.tiny import (
    CONFIGS,
    ONE_OF_EACH,
    SEQUENCES,
    assert_close,
    logits_of,
    peer,
    peer_logits,
    rewrite,
    rewrite_as_bin,
    rewrite_as_bin_shards,
    weights_of,
)

BATCH = PackedBatch.from_sequences(SEQUENCES)
PREFIX = {"bloom": "transformer."} | dict.fromkeys(("llama", "gemma3", "cohere2", "apertus"), "model.")

each_family = pytest.mark.parametrize("family", ONE_OF_EACH)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return {family: (directory saved by transformers, its logits)}."""
    written = {}
    for family, make in ONE_OF_EACH.items():
        path = tmp_path_factory.mktemp(family)
        model = peer(make())
        model.save_pretrained(path)
        written[family] = path, peer_logits(model, SEQUENCES)
    return written


@pytest.fixture
def directory(saved, family, tmp_path):
    """Return a copy for a test to damage."""
    return shutil.copytree(saved[family][0], tmp_path / "model")


@torch.no_grad()
def assert_loads(path, saved, family):
    assert_close(logits_of(load_model(path), BATCH), saved[family][1], 1e-5)


@each_family
def test_sharded_safetensors(family, saved, tmp_path):
    peer(ONE_OF_EACH[family]()).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_loads(tmp_path, saved, family)


@each_family
@pytest.mark.parametrize("legacy", [False, True])
def test_one_bin_file(family, directory, saved, legacy):
    rewrite_as_bin(directory, legacy)
    assert_loads(directory, saved, family)


@each_family
def test_sharded_bin_files(family, directory, saved):
    rewrite_as_bin_shards(directory)
    assert_loads(directory, saved, family)


@each_family
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
def test_harmless_leftovers_are_ignored(family, directory, saved, leftover):
    rewrite(directory, weights_of(directory) | {leftover: torch.ones(4)})
    assert_loads(directory, saved, family)


@pytest.mark.parametrize("family", ["apertus"])
def test_constants_of_an_activation_may_be_absent_but_not_differ(family, directory, saved):
    tensors = weights_of(directory)
    for end in ("beta", "eps"):
        without = {name: tensor for name, tensor in tensors.items() if not name.endswith(f"act_fn.{end}")}
        assert len(without) == len(tensors) - 5
        rewrite(directory, without)
        assert_loads(directory, saved, family)
        name = f"model.layers.3.mlp.act_fn.{end}"
        rewrite(directory, tensors | {name: torch.tensor(0.25)})
        with pytest.raises(UserError, match=rf"{name} 0.25: only (0.5|-1e-06) is supported"):
            load_model(directory)


@pytest.mark.parametrize("family", ["bloom"])
def test_tied_head_may_be_stored_twice_but_not_differ(family, directory, saved):
    tensors = weights_of(directory)
    head = tensors["transformer.word_embeddings.weight"].clone()
    for stored in (head, head.double()):
        rewrite(directory, tensors | {"lm_head.weight": stored})
        assert_loads(directory, saved, family)
    head[0, 0] += 1
    rewrite(directory, tensors | {"lm_head.weight": head})
    with pytest.raises(UserError, match="lm_head.weight that differs from the embedding"):
        load_model(directory)


@pytest.mark.parametrize("name", ["bloom, 8 heads", "llama, tied"])
@torch.no_grad()
def test_tied_model_may_be_stored_as_its_head_only(name, tmp_path):
    """transformers uses the weight of the head as the embedding."""
    model = peer(CONFIGS[name]())
    expected = peer_logits(model, SEQUENCES)
    model.save_pretrained(tmp_path)
    tensors = weights_of(tmp_path)
    (embedding,) = (key for key in tensors if key.endswith(("word_embeddings.weight", "embed_tokens.weight")))
    tensors["lm_head.weight"] = tensors.pop(embedding)
    rewrite(tmp_path, tensors)
    assert_close(peer_logits(AutoModelForCausalLM.from_pretrained(tmp_path), SEQUENCES), expected, 1e-5)
    assert_close(logits_of(load_model(tmp_path), BATCH), expected, 1e-5)


def test_untied_model_without_embedding_is_refused(tmp_path):
    peer(ONE_OF_EACH["llama"]()).save_pretrained(tmp_path)
    tensors = weights_of(tmp_path)
    del tensors["model.embed_tokens.weight"]
    rewrite(tmp_path, tensors)
    with pytest.raises(UserError, match=r"missing 1 \(model.embed_tokens.weight\)"):
        load_model(tmp_path)


@each_family
def test_every_weight_has_the_given_dtype_and_trains(family, directory):
    model = load_model(directory, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert not list(model.buffers())


@each_family
def test_loaded_model_does_not_need_its_files(family, directory, saved):
    model = load_model(directory)
    (directory / "model.safetensors").write_bytes(b"")  # a weight that is still mapped would crash now
    with torch.no_grad():
        assert_close(logits_of(model, BATCH), saved[family][1], 1e-5)


def test_mismatched_weights_are_one_error_with_all_names(tmp_path):
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


@each_family
def test_shape_mismatch_is_refused(family, directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 60}))
    with pytest.raises(UserError, match=r"missing none; unused none; of another shape [12] \(.*\(61, 48\)"):
        load_model(directory)


@each_family
def test_long_lists_of_names_are_shortened(family, directory):
    config = json.loads((directory / "config.json").read_text())
    config["n_layer" if family == "bloom" else "num_hidden_layers"] = 3
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:3]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing none; unused \d+ \(([^,]+, ){7}[^,]+ and \d+ more\)"):
        load_model(directory)
