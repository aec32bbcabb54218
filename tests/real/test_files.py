"""Files of real models: GGUF as transformers and sentencepiece read it, written again, and what `save_model` writes."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from datagen.kits import kit_codes, load_kit
from engine.models import load_config, load_model, save_model
from engine.models.gguf import _reader, read_gguf, write_gguf
from engine.models.names import TABLES, written_name
from engine.text.extend import extend
from engine.text.gguf_tokenizer import USER_DEFINED, fields_of
from engine.text.tokenizer import load_tokenizer
from tests.greetings import GREETINGS
from tests.real.models import TEXTS, assert_close, gguf_file, hidden, passage, tokenizer_of

pytestmark = pytest.mark.real


@pytest.mark.slow
def test_every_tensor_is_the_one_transformers_reads(real, tmp_path):
    name, path = real
    file, model = gguf_file(name, tmp_path), load_model(path)
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(model.config)
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=peer)["tensors"]
    ours = {written_name(TABLES[model.config.model_type], n): weight for n, weight in model.named_parameters()}
    assert ours.keys() == found.keys() - {"lm_head.weight"}
    for n, weight in ours.items():
        assert torch.equal(torch.as_tensor(found.pop(n)).view_as(weight), weight), n


@pytest.mark.slow
def test_written_again_as_gguf(real, tmp_path):
    """Every weight, every token id and the config come back; the head of 100 MB is written as float16."""
    _, path = real
    model, tokenizer = load_model(path), tokenizer_of(path)
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "f16", fields_of)
    read, fields = read_gguf(tmp_path / "m.gguf", torch.float32)
    for (name, weight), (_, expected) in zip(read.named_parameters(), model.named_parameters(), strict=True):
        if weight.ndim == 1:
            torch.testing.assert_close(weight, expected, rtol=0, atol=3e-5)  # Gemma's: 1 + w in float32, w up to 300
        else:
            assert torch.equal(weight, expected.half().float()), name
    same = ("layer_types", "sliding_window", "rope_parameters", "head_dim", "rms_norm_eps", "query_pre_attn_scalar")
    for name in same:
        assert getattr(read.config, name, None) == getattr(model.config, name, None), name
    assert len(fields["tokenizer.ggml.tokens"]) == model.vocab_size


def sentencepiece_of(fields) -> SentencePieceProcessor:
    """Build sentencepiece's own BPE from the scores and types of a GGUF file's tokens."""
    model = sentencepiece_model_pb2.ModelProto()
    tokens, scores, types = (fields[f"tokenizer.ggml.{n}"] for n in ("tokens", "scores", "token_type"))
    unknown = fields["tokenizer.ggml.unknown_token_id"]
    for i, (token, score, type_) in enumerate(zip(tokens, scores, types)):
        piece = model.pieces.add()
        piece.piece = token.replace(" ", "\u2581") if type_ == USER_DEFINED else token
        piece.score, piece.type = score, 2 if i == unknown else type_
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback = 2, True
    for name, id_name in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        i = fields[f"tokenizer.ggml.{id_name}_token_id"]
        setattr(trainer, f"{name}_id", i)
        setattr(trainer, f"{name}_piece", tokens[i])
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", False, False
    normalizer.escape_whitespaces = True
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def test_token_ids(real, tmp_path):
    """Gemma against sentencepiece; SmolLM2's byte-level BPE against what transformers makes of the file."""
    name, path = real
    file, ours = gguf_file(name, tmp_path), tokenizer_of(path)
    rng = random.Random(0)
    letters = "".join(GREETINGS.values()) + " " * 40 + "\n\t<>/b'"
    texts = [*TEXTS, *("".join(rng.choices(letters, k=60)) for _ in range(300))]
    if name == "gemma3":
        fields = {n: field.contents() for n, field in _reader(file).fields.items() if n.startswith("tokenizer")}
        processor = sentencepiece_of(fields)
        expected = [[ours.bos_token_id, *processor.encode(text)] for text in texts]
    else:
        peer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        expected = [peer(text).input_ids for text in texts]
    for text, ids in zip(texts, expected):
        found = ours(text).input_ids
        assert found == ids, text
        assert ours.decode(found, skip_special_tokens=True) == text


def test_gemmas_config_and_special_tokens(real):
    """The facts that the file leaves out are transformers' defaults; the sizes are those of the model's card."""
    name, path = real
    if name != "gemma3":
        pytest.skip("of Gemma alone")
    config, published = load_config(path), transformers.Gemma3TextConfig(num_hidden_layers=18)
    for fact in ("layer_types", "rope_parameters", "query_pre_attn_scalar", "hidden_activation", "tie_word_embeddings"):
        assert getattr(config, fact) == getattr(published, fact), fact
    sizes = (config.hidden_size, config.head_dim, config.sliding_window, config.max_position_embeddings)
    assert sizes == (640, 256, 512, 32768)
    tokenizer = tokenizer_of(path)
    ids = tokenizer("<start_of_turn>user\nनमस्ते<end_of_turn>").input_ids
    assert ids[:2] == [2, 105] and ids[-1] == 106 and ids[3] == 107
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")


@torch.no_grad()
def test_saved_model_in_transformers(real, tmp_path):
    """Other weights than those read, so that nothing is left over from the directory before."""
    _, path = real
    model, tokenizer = load_model(path), tokenizer_of(path)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() < 1_000_000:
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    save_model(model, tmp_path / "saved", tokenizer)
    ids = tokenizer(passage("ne", 200)).input_ids
    ours = hidden(model, [ids]) @ model.head_weight.T
    del model
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert_close(ours, peer(torch.tensor([ids])).logits[0], 1e-5, "saved")
    read = load_model(tmp_path / "saved")
    assert torch.equal(ours, hidden(read, [ids]) @ read.head_weight.T)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "saved")(passage("ta", 200)).input_ids
        == tokenizer(passage("ta", 200)).input_ids
    )


@pytest.mark.slow
def test_an_extended_tokenizer_keeps_the_ids_of_old_texts(real):
    """In every language that has a kit; new pieces of Nepali stand for the old tokens of the same text."""
    _, path = real
    tokenizer = load_tokenizer(path)
    extension, unchanged = extend(tokenizer, load_kit("ne").texts, 100), 0
    for code in kit_codes():
        for text in load_kit(code).texts:
            old, new = (t.encode(text, add_special_tokens=False) for t in (tokenizer, extension.tokenizer))
            parts = (extension.replaced[i - extension.first_id] if i >= extension.first_id else [i] for i in new)
            assert [i for ids in parts for i in ids] == old, (code, text)
            assert extension.tokenizer.decode(new) == tokenizer.decode(old), (code, text)
            unchanged += new == old
    assert unchanged > 800
