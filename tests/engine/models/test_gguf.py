"""GGUF: equal weights and logits both ways, the reader of transformers agrees, damaged files are refused."""

from __future__ import annotations

import math
import random
import struct
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, decoders, normalizers

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import build_model, load_model, save_model
from engine.models.gguf import _add, read_gguf, write_gguf
from engine.text.gguf_tokenizer import _splitter, fields_of, tokenizer_of
from engine.text.tokenizer import load_tokenizer, train_byte_bpe, train_sentencepiece
from launch import convert
from tests.engine.models.tiny import CONFIGS, LLAMA3, YARN, randomise
from tests.greetings import GREETINGS

TEXTS = [*GREETINGS.values(), "It's 1234567 o'clock,\n\n  isn't it?  ९८७ x\ty "]
# Configs that the format cannot express, and the words that refuse them when they are written.
REFUSED = {
    "bloom, residual from the norm": "apply_residual_connection_post_layernorm is True",
    "llama, yarn scaling with its own amplitude": "truncate is False.*always True",
    "qwen2, windows above": "layer_types is .*always full_attention",
    "smollm3": "no_rope_layers is .*always",  # every fourth layer
    "gemma3": "query_pre_attn_scalar is 24.*always 16",
    "gemma3, untied": "query_pre_attn_scalar is 24",
    "cohere2, untied": "tie_word_embeddings is False",
    "gemma3, irregular windows": "layer_types is .*one full_attention layer at the end of each period",
    "gemma3, scaled windows": "rope_parameters.sliding_attention.rope_type is linear",
}
# Llama 3's scaling is in a file only as its result: numbers other than the published ones are refused when read.
NOT_PUBLISHED = ("llama, llama3 scaling",)
_plain, _linear = {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "factor": 4.0}
_scaled = _linear | {"rope_theta": 5000.0}
_gemma3 = partial(CONFIGS["gemma3"], query_pre_attn_scalar=16)
MORE = {
    "llama, yarn scaling, mscale": partial(
        CONFIGS["llama, yarn scaling"],
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 4.0, "beta_slow": 0.5},
    ),
    "smollm3, every fourth": partial(CONFIGS["smollm3"], no_rope_layer_interval=4),
    "smollm3, biases": partial(CONFIGS["smollm3"], no_rope_layer_interval=4, attention_bias=True, mlp_bias=True),
    "gemma3, head size": _gemma3,
    "gemma3, head size, untied": partial(_gemma3, tie_word_embeddings=False),
    "gemma3, published windows": partial(
        _gemma3, num_hidden_layers=7, sliding_window_pattern=6,
        rope_parameters={"full_attention": _scaled, "sliding_attention": _plain | {"rope_theta": 10_000.0}},
    ),
    "gemma3, windows only": partial(_gemma3, layer_types=["sliding_attention"] * 5),
    "gemma3, 62 layers": partial(
        _gemma3, num_hidden_layers=62, query_pre_attn_scalar=8, sliding_window_pattern=6, intermediate_size=16
    ),
    "cohere2, every fourth": partial(CONFIGS["cohere2"], sliding_window_pattern=4),
    "cohere2, untied": partial(CONFIGS["cohere2"], tie_word_embeddings=False),
    "gemma3, irregular windows": partial(
        _gemma3, layer_types=["full_attention", "sliding_attention", "full_attention", *["sliding_attention"] * 2]
    ),
    "gemma3, scaled windows": partial(
        _gemma3, rope_parameters={"full_attention": _scaled, "sliding_attention": _scaled}
    ),
}  # fmt: skip
ALL = {**CONFIGS, **MORE}
EXPRESSIBLE = [name for name in ALL if name not in REFUSED and name not in NOT_PUBLISHED]


def byte_level(pre: str):
    """Return a byte-level BPE with the text split that the format names `pre`."""
    made = train_byte_bpe(TEXTS * 3, 400)
    made.backend_tokenizer.pre_tokenizer = _splitter(pre)
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def model_of(name: str, vocab_size: int = 400):
    config = ALL[name](vocab_size=vocab_size)
    model = build_model(config, 0)
    randomise(model)
    return model


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_write_and_read_keeps_every_weight(tmp_path, name):
    model = model_of(name)
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    read, _ = read_gguf(tmp_path / "m.gguf", torch.float32)
    expected = dict(model.named_parameters())
    assert dict(read.named_parameters()).keys() == expected.keys()
    for n, weight in read.named_parameters():
        if "gemma3" in name and n.endswith("norm.weight"):  # stored with 1 added, in float32
            weight, expected[n] = 1 + weight, 1 + expected[n]
        assert torch.equal(weight, expected[n]), n
    assert type(read) is type(model) and read.config.model_type == model.config.model_type
    save_model(read, tmp_path / "hf")
    # An amplitude is stored as a float32 factor of the usual one.
    torch.testing.assert_close(
        logits(load_model(tmp_path / "hf")), logits(model), rtol=0, atol=1e-5 if "mscale" in name else 0,
        msg="the config says the same, too",
    )  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_config_without_a_field_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        write_gguf(tmp_path / "m.gguf", model_of(name), byte_level("gpt-2"), "f32", fields_of)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_yarn_amplitude_is_the_factor_of_the_usual_one(tmp_path):
    """Readers of the format multiply by 0.1 ln(factor) + 1 themselves."""
    model = model_of("llama, yarn scaling, mscale")
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    read, fields = read_gguf(tmp_path / "m.gguf", torch.float32)
    amplitude = (0.07 * math.log(4) + 1) / (0.12 * math.log(4) + 1)
    assert fields["llama.rope.scaling.attn_factor"] == pytest.approx(amplitude / (0.1 * math.log(4) + 1))
    assert read.config.rope_parameters["attention_factor"] == pytest.approx(amplitude)
    assert read.config.rope_parameters["beta_fast"] == 4.0


def test_published_llama3_scaling_is_read_and_others_refused(tmp_path):
    published = {"original_max_position_embeddings": 8192, "rope_theta": 500000.0, "factor": 32.0}
    for name, changes in (("published", published), ("other", {**published, "high_freq_factor": 8.0})):
        config = CONFIGS["llama, grouped heads"](vocab_size=400, head_dim=64, rope_parameters={**LLAMA3, **changes})
        write_gguf(tmp_path / f"{name}.gguf", build_model(config, 0), byte_level("gpt-2"), "f32", fields_of)
    read, _ = read_gguf(tmp_path / "published.gguf", torch.float32)
    assert read.config.rope_parameters == {**LLAMA3, **published}
    refuse(tmp_path / "other.gguf", "unknown rotary scaling")


def logits(model) -> torch.Tensor:
    batch = PackedBatch.from_sequences([[5, 9, 33, 60, 2, 17, 8, 41, 3, 27, 90, 12], [7, 300]])
    with torch.no_grad():
        return model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)) @ model.head_weight.T


@pytest.mark.parametrize("name", [
    "llama, grouped heads", "llama, tied", "qwen2", "qwen3", "bloom, 8 heads", "gemma3, head size",
])  # fmt: skip
def test_transformers_reads_written_file(tmp_path, name):
    """transformers has its own code to restore the row order."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = model_of(name)
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    save_model(model, tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    found = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=peer)["tensors"]
    state = peer.state_dict()
    for n, weight in found.items():
        weight, expected = torch.as_tensor(weight).view_as(state[n]), state[n]
        if "gemma3" in name and n.endswith("norm.weight"):  # (1 + w) - 1 in float32
            weight, expected = 1 + weight, 1 + expected
        assert torch.equal(weight, expected), n
    assert len(found) >= len(state) - 1  # a tied head is stored once


@pytest.mark.parametrize(("name", "second"), [
    ("llama, grouped heads", 4), ("smollm3, every fourth", 4), ("apertus", 1), ("cohere2", 1),
    ("gemma3, head size", 1), ("qwen3", 1),
])  # fmt: skip
def test_order_of_query_rows(tmp_path, name, second):
    """llama.cpp rotates neighbours in some architectures: there row 1 is the partner of row 0, half a head (4) on."""
    model = model_of(name)
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    (stored,) = (t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.0.attn_q.weight")
    assert torch.equal(torch.tensor(np.array(stored.data[1])), model.layers[0].q.weight.detach()[second])


@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("q8_0", 1e-2)])
def test_quantisation_rounds_only_matrices(tmp_path, kind, error):
    model = model_of("llama, grouped heads")
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), kind, fields_of)
    read, _ = read_gguf(tmp_path / "m.gguf", torch.float32)
    for (name, a), (_, b) in zip(read.named_parameters(), model.named_parameters()):
        assert (a - b).abs().max() <= error * b.abs().max(), name
        assert a.ndim > 1 or a.equal(b), name


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "bloom"])
def test_byte_level_tokenizer_round_trip(tmp_path, pre):
    made = byte_level(pre)
    check_same(made, tokenizer_of(fields_of(made, 410), "x"))


def test_sentencepiece_tokenizer_round_trip():
    """Except for texts that begin with a blank: there transformers adds no dummy prefix, and the format does."""
    made = train_sentencepiece(TEXTS * 3, 600)
    check_same(made, tokenizer_of(fields_of(made, 600), "x"), str.lstrip)


def gemma_tokenizer():
    """Return a SentencePiece BPE as Gemma's: no blank in front, runs of blanks and lines as tokens of their own."""
    made = train_sentencepiece(TEXTS * 3, 560)
    made.backend_tokenizer.pre_tokenizer = None
    made.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    made.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "   ", "<table>")])
    made.add_tokens([AddedToken("<start_of_turn>", special=True, normalized=False)], special_tokens=True)
    made.chat_template = "<start_of_turn>{{ messages[0]['content'] }}"
    return made


def test_gemma_tokenizer_round_trip():
    made = gemma_tokenizer()
    made.add_tokens([AddedToken("\u2581\u2581", normalized=True)])
    fields = fields_of(made, 600)
    assert "  " in fields["tokenizer.ggml.tokens"] and "\u2581\u2581" not in fields["tokenizer.ggml.tokens"]
    assert not fields["tokenizer.ggml.add_space_prefix"] and fields["tokenizer.ggml.add_bos_token"]
    read = tokenizer_of(fields, "x")
    check_same(made, read)
    for text in ("a\n\n\nb   c", "<table>a<start_of_turn>", "   a", "\u2581a", "a  b"):
        assert made(text).input_ids == read(text).input_ids, text
    assert made.bos_token_id == read("a").input_ids[0]
    assert read.chat_template == made.chat_template


def test_blanks_named_as_sentencepiece_names_them():
    """A token of blanks may be stored as blanks or as SentencePiece's signs for them; both are found first."""
    fields = fields_of(gemma_tokenizer(), 600)
    tokens = fields["tokenizer.ggml.tokens"]
    signs = [token if token.strip(" ") else token.replace(" ", "\u2581") for token in tokens]
    assert signs != tokens
    blanks = tokens.index("   ")
    for named in (tokens, signs):
        read = tokenizer_of({**fields, "tokenizer.ggml.tokens": named}, "x")
        assert blanks in read("a   b   ").input_ids
        assert read.decode(read("a   b").input_ids, skip_special_tokens=True) == "a   b"


def check_same(a, b, trim=str) -> None:
    rng = random.Random(0)
    texts = [*TEXTS, *("".join(rng.choices(" ab1é न\n'", k=30)) for _ in range(200))]
    for text in map(trim, texts):
        assert a(text).input_ids == b(text).input_ids, text
    ids = a(TEXTS[0]).input_ids
    assert a.decode(ids) == b.decode(ids)
    assert (a.bos_token_id, a.eos_token_id, a.chat_template) == (b.bos_token_id, b.eos_token_id, b.chat_template)


def test_text_split_without_a_name_is_refused():
    with pytest.raises(UserError, match="no name in the GGUF format"):
        fields_of(train_byte_bpe(TEXTS * 3, 400), 400)


@pytest.mark.parametrize(("name", "fact"), [
    ("gemma3, head size", "layer_types"), ("gemma3, head size", "rope_parameters"),
    ("cohere2", "layer_types"), ("smollm3, every fourth", "no_rope_layers"),
])  # fmt: skip
def test_what_files_leave_out_is_what_transformers_takes_for_granted(tmp_path, name, fact):
    """Published files have no field for the period of windows, Gemma's second rotary base, SmolLM 3's interval."""
    model = model_of(name)
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    kind = {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    names = ("attention.sliding_window_pattern", "rope.freq_base_swa", "rope.scaling.type", "rope.scaling.factor")
    without = {f"{kind}.{n}": None for n in names} | ({f"{kind}.rope.freq_base": 1e6} if kind == "gemma3" else {})
    read, _ = read_gguf(changed(tmp_path / "m.gguf", tmp_path / "p.gguf", without), torch.float32)
    assert getattr(read.config, fact) == getattr(type(model.config)(num_hidden_layers=5), fact)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(file, model_of("llama, grouped heads"), byte_level("gpt-2"), "f16", fields_of)
    return file


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "gemma.gguf"
    write_gguf(file, model_of("gemma3, published windows", 600), gemma_tokenizer(), "f16", fields_of)
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["whole", "gemma"])
def test_truncated_file_is_one_line(tmp_path, request, kind, share):
    data = request.getfixturevalue(kind).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    refuse(tmp_path / "cut.gguf", "not a whole GGUF file|holds a model of|has the architecture|download it again")


def test_other_files_are_refused(tmp_path, whole):
    refuse(tmp_path / "none.gguf", "is not there")
    (tmp_path / "text.gguf").write_text("no weights " * 100)
    refuse(tmp_path / "text.gguf", "not a whole GGUF file")
    data = whole.read_bytes().replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"mamba", 1)
    (tmp_path / "mamba.gguf").write_bytes(data)
    refuse(tmp_path / "mamba.gguf", "architecture 'mamba': supported are llama")


def changed(source: Path, file: Path, changes: dict[str, object]) -> Path:
    """Copy a GGUF file with other fields; None leaves one out."""
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture"))
    for name, value in {**fields, **changes}.items():
        _add(writer, name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("name", "value", "words"), [
    ("attention.sliding_window", None, "no field gemma3.attention.sliding_window"),
    ("attention.sliding_window", "wide", "sliding_window 'wide', expected one number"),
    ("attention.sliding_window_pattern", 0, "pattern 0, expected a period or a list"),
    ("attention.sliding_window_pattern", [True, False], "expected 7 values"),
    ("attention.head_count", 0, "head_count 0, expected 1 or more"),
    ("attention.head_count", [4, 4], "expected one number"),
    ("rope.dimension_count", 8, "only heads rotated whole"),
    ("rope.scaling.type", "longrope", "'longrope', supported are none, linear and yarn"),
    ("attention.layer_norm_rms_epsilon", float("nan"), "expected one number"),
    ("final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0"),
    ("block_count", 8, "missing blk.7"),
])  # fmt: skip
def test_bad_field_is_one_line(tmp_path, gemma, name, value, words):
    refuse(changed(gemma, tmp_path / "bad.gguf", {f"gemma3.{name}": value}), words)


def test_windows_as_a_list(tmp_path, gemma):
    """Some programs write one truth value for each layer."""
    pattern = [True, False, True, True, False, True, False]
    read, _ = read_gguf(changed(gemma, tmp_path / "m.gguf", {"gemma3.attention.sliding_window_pattern": pattern}),
                        torch.float32)  # fmt: skip
    assert [kind == "sliding_attention" for kind in read.config.layer_types] == pattern


@pytest.mark.parametrize("values", [None, [0.5]])
def test_missing_number_of_the_activation_is_one_line(tmp_path, values):
    write_gguf(tmp_path / "m.gguf", model_of("apertus"), byte_level("gpt-2"), "f32", fields_of)
    refuse(changed(tmp_path / "m.gguf", tmp_path / "bad.gguf", {"xielu.alpha_n": values}), "no list xielu.alpha_n")


def refuse(file: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_gguf(file, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "words"), [
    ({"tokenizer.ggml.model": "t5"}, "kind 't5', supported are"),
    ({"tokenizer.ggml.pre": "grok"}, "splits text as 'grok', supported are"),
    ({"tokenizer.ggml.tokens": None}, "no list tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.merges": ["a"]}, "a merge that is not of two tokens"),
    ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id 9999 and"),
    ({"tokenizer.ggml.model": "llama"}, "no list tokenizer.ggml.scores"),
])  # fmt: skip
def test_unsupported_tokenizer_is_one_line(changes, words):
    fields = {**fields_of(byte_level("gpt-2"), 400), **changes}
    with pytest.raises(UserError, match=words):
        tokenizer_of(fields, "m.gguf")


def test_command_converts_both_ways(tmp_path, whole, capsys):
    convert.run(["--gguf", str(whole), "--output", str(tmp_path / "hf"), "--dtype", "float32"])
    convert.run(["--to-gguf", str(tmp_path / "hf"), "--output", str(tmp_path / "again.gguf"), "--quantisation", "f16"])
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()
    assert load_tokenizer(tmp_path / "hf")("a b").input_ids
    assert "matrices in f16" in capsys.readouterr().out
    with pytest.raises(UserError, match="either --gguf FILE or --to-gguf DIR"):
        convert.run(["--output", str(tmp_path / "x")])
