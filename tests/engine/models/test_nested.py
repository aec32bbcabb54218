"""The language model inside a model that also reads images: loaded alone, and saved as a language model."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_config, load_model, save_model
from tests.engine.models.tiny import (
    SEQUENCES,
    VOCABULARY,
    assert_close,
    gemma3,
    llama,
    logits_of,
    mistral,
    peer_logits,
    randomise,
    rewrite,
    weights_of,
)

BATCH = PackedBatch.from_sequences(SEQUENCES)
SEES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


def gemma3_with_eyes():
    vision = transformers.SiglipVisionConfig(**SEES, vision_use_head=False)
    config = transformers.Gemma3Config(
        text_config=gemma3(), vision_config=vision, mm_tokens_per_image=4, image_token_index=VOCABULARY - 1
    )
    config.eos_token_id = [1, 7]
    return transformers.Gemma3ForConditionalGeneration(config)


def mistral3():
    vision = transformers.PixtralVisionConfig(**SEES, head_dim=16)
    config = transformers.Mistral3Config(
        text_config=mistral(head_dim=16), vision_config=vision, image_token_index=VOCABULARY - 1
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def llava():
    vision = transformers.CLIPVisionConfig(**SEES, projection_dim=32)
    config = transformers.LlavaConfig(text_config=llama(), vision_config=vision, image_token_index=VOCABULARY - 1)
    return transformers.LlavaForConditionalGeneration(config)


KINDS = {"gemma3": (gemma3_with_eyes, "gemma3_text"), "mistral3": (mistral3, "mistral"), "llava": (llava, "llama")}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """Return (directory of the whole model, its logits of text, the model_type of its language model)."""
    make, inner = KINDS[request.param]
    path, model = tmp_path_factory.mktemp(request.param), make().eval()
    randomise(model)
    model.save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["model_type"] == request.param
    return path, peer_logits(model, SEQUENCES), inner


@torch.no_grad()
def test_language_model_is_loaded_and_saved_alone(whole, tmp_path):
    path, expected, inner = whole
    model = load_model(path)
    assert model.config.model_type == inner
    assert_close(logits_of(model, BATCH), expected, 1e-5)
    save_model(model, tmp_path / "model")
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert again.config.model_type == inner
    assert_close(peer_logits(again, SEQUENCES), expected, 1e-5)
    assert_close(logits_of(load_model(tmp_path / "model"), BATCH), expected, 1e-5)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "language_model."])
@torch.no_grad()
def test_every_published_prefix_is_read(whole, prefix, tmp_path):
    """transformers has renamed these weights; files on the Hub have all three names."""
    path, expected, _ = whole
    old, tensors = "language_model.model.", weights_of(path)
    assert sum(name.startswith(old) for name in tensors) > 40
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    rewrite(tmp_path, {name.replace(old, prefix, 1): tensor for name, tensor in tensors.items()})
    assert_close(logits_of(load_model(tmp_path), BATCH), expected, 1e-5)


def test_a_missing_weight_of_the_language_model_is_named(whole, tmp_path):
    path, _, _ = whole
    tensors = weights_of(path)
    del tensors["language_model.model.layers.2.mlp.up_proj.weight"]
    tensors["language_model.model.layers.9.mlp.up_proj.weight"] = torch.ones(3)
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    rewrite(tmp_path, tensors)
    missing, unused = r"missing 1 \(model.layers.2.mlp.up_proj.weight\)", r"unused 1 \(language_model.*layers.9"
    with pytest.raises(UserError, match=f"{missing}; {unused}"):
        load_model(tmp_path)


def test_tokens_of_the_outer_config_come_first(tmp_path):
    """Gemma's outer config lists the end of a turn; the inner one has only the end of a text."""
    gemma3_with_eyes().config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == 1
    assert load_config(tmp_path).eos_token_id == [1, 7]


@pytest.mark.parametrize("inner", [None, 5, {}, {"model_type": "gpt2"}, {"model_type": ["llama"]}])
def test_other_language_models_are_refused(inner, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": inner}))
    with pytest.raises(UserError, match="has model_type 'llava': supported are bloom"):
        load_config(tmp_path)
