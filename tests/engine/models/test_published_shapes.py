"""The numbers of published config.json files, in the fields they are published with, against transformers.

Two layers and a small vocabulary; where a matrix would be large, fewer heads and a narrower MLP. Head size, heads per
key/value head, norms, scalings, biases and tied heads are as published. Windows of 4,096 are shortened, so that
sequences pass them.
"""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig

from engine.batch import PackedBatch
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.models import load_model
from engine.models.names import TABLES, written_name
from tests.engine.models.tiny import assert_close, logits_of, peer, peer_logits

FAR = 3000  # a position where one unit in the last place of a frequency is 1e-4 rad

LLAMA3_SCALING = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 512, "max_position_embeddings": 32768,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
COHERE2 = {
    "model_type": "cohere2", "hidden_act": "silu", "attention_bias": False, "layer_norm_eps": 1e-5, "rope_theta": 50000,
    "head_dim": 128, "sliding_window": 4096,
}  # fmt: skip

# name -> (published numbers, what is smaller here)
PUBLISHED = {
    "Llama 3.2 1B": (
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": {"factor": 32.0, **LLAMA3_SCALING},
            "max_position_embeddings": 131072, "tie_word_embeddings": True,
        },
        {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 2},
    ),
    "Llama 3.1 8B": (
        {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, **LLAMA3_SCALING},
            "max_position_embeddings": 131072, "tie_word_embeddings": False,
        },
        {"hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 4, "num_key_value_heads": 1},
    ),
    "Qwen3 0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 40960,
            "attention_bias": False, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "Qwen2.5 7B with YaRN": (
        {
            "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "max_position_embeddings": 32768, "max_window_layers": 28,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
            "sliding_window": 131072, "use_sliding_window": False, "tie_word_embeddings": False,
        },
        {"hidden_size": 896, "intermediate_size": 1184, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
    "EuroLLM 1.7B": (
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 128000, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 4096, "attention_bias": False,
            "tie_word_embeddings": False,
        },
        {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "Salamandra 2B": (
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5440, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 256000, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 8192, "attention_bias": False,
            "mlp_bias": False, "tie_word_embeddings": False,
        },
        {"hidden_size": 512, "intermediate_size": 1360, "num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    "Sarvam-1": (
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 68096,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
        {"hidden_size": 512, "intermediate_size": 2752, "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "Mistral Nemo 12B": (  # heads of 128, not 5,120 / 32
        {
            "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "max_position_embeddings": 131072, "sliding_window": None,
            "tie_word_embeddings": False,
        },
        {"hidden_size": 640, "intermediate_size": 1792, "num_attention_heads": 4, "num_key_value_heads": 1},
    ),
    "SmolLM3 3B": (
        {
            "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256, "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0, "rope_scaling": None, "max_position_embeddings": 65536, "attention_bias": False,
            "mlp_bias": False, "no_rope_layer_interval": 4, "sliding_window": None, "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        {
            "hidden_size": 512, "intermediate_size": 2752, "num_attention_heads": 4, "num_key_value_heads": 1,
            "no_rope_layer_interval": 2, "pad_token_id": 0,
        },
    ),
    "Gemma 3 270M": (
        {
            **GEMMA3, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
            "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144,
        },
        {"sliding_window_pattern": 2},
    ),
    "Gemma 3 1B": (
        {
            **GEMMA3, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
            "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144, "sliding_window_pattern": 6,
        },
        {"intermediate_size": 1728, "sliding_window_pattern": 2},
    ),
    "Gemma 3 4B, its text part": (
        {
            **GEMMA3, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208, "sliding_window": 1024,
            "max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        {
            "hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 2, "num_key_value_heads": 1,
            "sliding_window": 64, "sliding_window_pattern": 2,
        },
    ),
    "Gemma 3 27B, its text part": (
        {
            **GEMMA3, "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "head_dim": 128,
            "num_attention_heads": 32, "num_key_value_heads": 16, "vocab_size": 262208, "sliding_window": 1024,
            "max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "query_pre_attn_scalar": 168,
        },
        {
            "hidden_size": 672, "intermediate_size": 2688, "num_attention_heads": 4, "num_key_value_heads": 2,
            "sliding_window": 64, "sliding_window_pattern": 2,
        },
    ),
    "Command R7B": (
        {
            **COHERE2, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256000, "logit_scale": 0.25,
            "max_position_embeddings": 132096, "sliding_window_pattern": 4,
        },
        {
            "hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 4, "num_key_value_heads": 1,
            "sliding_window": 64, "sliding_window_pattern": 2,
        },
    ),
    "Tiny Aya": (
        {
            **COHERE2, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 262144, "logit_scale": 1.0,
            "max_position_embeddings": 500000,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 9,
        },
        {
            "hidden_size": 512, "intermediate_size": 2752, "num_attention_heads": 4, "num_key_value_heads": 1,
            "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Apertus 8B": (
        {
            "model_type": "apertus", "hidden_act": "xielu", "hidden_size": 4096, "intermediate_size": 21504,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 12000000, "rope_scaling": {"factor": 8.0, **LLAMA3_SCALING},
            "max_position_embeddings": 65536, "attention_bias": False, "mlp_bias": False, "qk_norm": True,
            "post_norm": False, "tie_word_embeddings": False,
        },
        # Narrow: the gradient of xIELU jumps at 0 (see its minimum), so no activation should be within rounding of 0.
        {"hidden_size": 512, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1},
    ),
}  # fmt: skip
SMALL = {"num_hidden_layers": 2, "vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2}
HEADS = ("num_attention_heads", "num_key_value_heads")


# Shapes whose architecture another one has, too. Their greedy tokens and gradients are compared with: pytest -m slow.
SIBLINGS = (
    "Llama 3.1 8B", "EuroLLM 1.7B", "Salamandra 2B", "Sarvam-1", "Gemma 3 4B, its text part",
    "Gemma 3 27B, its text part", "Gemma 3 1B",
)  # fmt: skip
first_of_each = pytest.mark.parametrize(
    "pair", [pytest.param(name, marks=[pytest.mark.slow] * (name in SIBLINGS)) for name in PUBLISHED], indirect=True
)


@pytest.fixture(scope="module", params=PUBLISHED)
def pair(request, tmp_path_factory):
    """Return (our model, the same model in transformers, sequences): one longer than the window."""
    published, smaller = PUBLISHED[request.param]
    fields = published | smaller | SMALL
    path = tmp_path_factory.mktemp("published")
    (path / "config.json").write_text(json.dumps(fields))
    theirs = peer(AutoConfig.from_pretrained(path))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.ndim == 2:  # activations of ordinary size; a large tied embedding would repeat its token
                parameter.mul_(parameter.shape[1] ** -0.5 / (5.0 if "embed" in name else 0.12))
    theirs.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(fields))  # the published fields again, not those of transformers 5
    longest = 600 if fields.get("sliding_window") == 512 else 100
    generator = torch.Generator().manual_seed(2)
    # From 8: transformers gives the embedding of the padding token, 0 or 3, no gradient.
    sequences = [torch.randint(8, 160, (n,), generator=generator).tolist() for n in (7, longest, 1, 33)]
    return load_model(path), theirs, sequences


def test_only_sizes_differ_from_the_published_numbers():
    for name, (published, smaller) in PUBLISHED.items():
        both = {**published, **smaller}
        ratios = [fields["num_attention_heads"] // fields["num_key_value_heads"] for fields in (published, both)]
        assert ratios[0] == ratios[1], name
        assert "head_dim" in published or len({f["hidden_size"] // f[HEADS[0]] for f in (published, both)}) == 1, name
        assert {*smaller} <= {"hidden_size", "intermediate_size", *HEADS, "sliding_window", "sliding_window_pattern",
                              "layer_types", "no_rope_layer_interval", "pad_token_id"}  # fmt: skip


def test_published_fields_are_read(pair):
    ours, theirs, _ = pair
    for name in ("hidden_size", "head_dim", "tie_word_embeddings", "rope_parameters", "layer_types", "sliding_window"):
        assert getattr(ours.config, name, None) == getattr(theirs.config, name, None), name


@torch.no_grad()
def test_logits_equal_transformers(pair):
    ours, theirs, sequences = pair
    assert_close(logits_of(ours, PackedBatch.from_sequences(sequences)), peer_logits(theirs, sequences), 1e-5)


@torch.no_grad()
def test_logits_at_far_positions_equal_transformers(pair):
    ours, theirs, sequences = pair
    batch = PackedBatch.from_sequences([sequences[3]])
    actual = logits_of(ours, dataclasses.replace(batch, positions_T=batch.positions_T + FAR))
    expected = theirs(batch.tokens_T[None], position_ids=batch.positions_T[None] + FAR).logits[0]
    assert_close(actual, expected, 1e-5)


@first_of_each
@torch.no_grad()
def test_greedy_tokens_with_the_cache_equal_transformers(pair):
    ours, theirs, sequences = pair
    prompts = [sequences[3], sequences[1], sequences[0]]
    responses = generate(ours, [Request(tuple(p), i, 0, 12) for i, p in enumerate(prompts)], Sampling(0.0), 0, -1, 2)
    for prompt, response in zip(prompts, responses):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
            min_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert list(response.tokens) == expected[0, len(prompt) :].tolist()
    assert sum(len(set(r.tokens)) for r in responses) > 9, "the texts are too constant to tell anything"


# Of float32. AVX2 sums in another order: 1.01e-5 in one weight of Gemma 3.
NEAR = 1e-5 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2e-5


@first_of_each
def test_gradients_of_log_probabilities_are_those_of_transformers_in_float64(pair):
    """Within NEAR of the largest gradient, or as near as transformers in float32."""
    ours, theirs, sequences = pair
    sequences = [sequences[0], sequences[1][-90:], sequences[3]]
    ours.zero_grad()
    batch = PackedBatch.from_sequences(sequences)
    logprob_TV = logits_of(ours, batch).log_softmax(-1)
    last = batch.cu_seqlens[1:].long() - 1
    predicts = torch.ones(len(batch.tokens_T), dtype=torch.bool).index_fill(0, last, False)
    logprob_TV.gather(1, batch.target_T[:, None])[predicts].sum().backward()
    in_float32, exact = peer_gradients(theirs, sequences), peer_gradients(copy.deepcopy(theirs).double(), sequences)
    table = TABLES[ours.config.model_type]
    for name, parameter in ours.named_parameters():
        at = written_name(table, name)
        allowed = max(NEAR, 1.5 * relative_error(in_float32[at], exact[at]))
        assert relative_error(parameter.grad, exact[at]) <= allowed, name


def peer_gradients(model, sequences):
    """Return {name: gradient of the sum of all log-probabilities}."""
    model.zero_grad()
    for sequence in sequences:
        tokens = torch.tensor([sequence])
        logprob = model(tokens).logits[0, :-1].log_softmax(-1)
        logprob.gather(1, tokens[0, 1:, None]).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
