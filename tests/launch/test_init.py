"""New models load in transformers and here, repeat bit for bit, and errors name their cause."""

import gzip
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.cli.parse import main
from engine.init_model import ModelShape, init_model, read_texts
from engine.models import load_model
from engine.text.tokenizer import check_vocab, encode_prompt, encode_response, load_tokenizer
from launch.init import run
from tests.greetings import GREETINGS

TEXTS = list(GREETINGS.values()) * 2
SHAPES = {
    "bloom": {"family": "bloom", "layers": 2, "hidden": 32, "heads": 4},
    "llama": {"family": "llama", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48},
}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_model_loads_in_transformers(tmp_path, family):
    weights = init_model(TEXTS, 640, tmp_path / "m", seed=3, **SHAPES[family])
    tokenizer, model = load_tokenizer(tmp_path / "m"), load_model(tmp_path / "m")
    check_vocab(tokenizer, model.vocab_size)
    assert weights == sum(p.numel() for p in model.parameters())
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert model.config.pad_token_id == tokenizer.pad_token_id

    theirs, their_tokenizer = (cls.from_pretrained(tmp_path / "m") for cls in (AutoModelForCausalLM, AutoTokenizer))
    ids = encode_prompt(tokenizer, TEXTS[0]) + encode_response(tokenizer, TEXTS[3])
    assert ids[: len(encode_prompt(tokenizer, TEXTS[0]))] == their_tokenizer(TEXTS[0]).input_ids
    batch = PackedBatch.from_sequences([ids])
    with torch.no_grad():
        ours = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)) @ model.head_weight.T
        torch.testing.assert_close(ours, theirs(torch.tensor([ids])).logits[0], atol=1e-5, rtol=1e-5)


def test_shape_is_written(tmp_path):
    init_model(TEXTS, 640, tmp_path / "m", **SHAPES["llama"], max_positions=64)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    expected = {
        "vocab_size": 640,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    assert {name: config[name] for name in expected} == expected


def test_equal_arguments_give_equal_files_and_seed_changes_only_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init_model(TEXTS, 640, tmp_path / name, seed=seed, **SHAPES["bloom"])
    a, b, c = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"model.safetensors"}


def test_overwrite(tmp_path):
    init_model(TEXTS, 640, tmp_path / "m", seed=1, **SHAPES["bloom"])
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="pass --overwrite"):
        init_model(TEXTS, 640, tmp_path / "m", seed=2, **SHAPES["bloom"])
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    init_model(TEXTS, 640, tmp_path / "m", seed=2, overwrite=True, **SHAPES["bloom"])
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError):
        init_model(TEXTS, 640, tmp_path / "notes", overwrite=True, **SHAPES["bloom"])
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    init_model(TEXTS, 640, tmp_path / "empty", **SHAPES["bloom"])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden": 30}, "--hidden 30 is no multiple of --heads 4"),
        ({"layers": 0}, "--layers is 0"),
        ({"kv_heads": 3}, "--heads 4 is no multiple of --kv-heads 3"),
        ({"kv_heads": 0}, "--kv-heads is 0"),
        ({"hidden": 36}, "is odd"),
        ({"family": "bloom"}, "--kv-heads is for --family llama"),
        ({"max_positions": 0}, "--max-positions is 0"),
    ],
)
def test_impossible_shapes(sizes, words):
    with pytest.raises(UserError, match=words):
        ModelShape(**{**SHAPES["llama"], **sizes})


def test_texts_from_text_and_record_files(tmp_path):
    record = {"id": "q/1", "instruction": "अब", "responses": ["x", "y"], "ranks": [1, 2], "meta": {"note": "z"}}
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    (tmp_path / "b.jsonl").write_text(json.dumps(record))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"output": "three"}'))
    (tmp_path / "d.json").write_text('[{"output": "four"}]')
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl.gz", "d.json")]
    assert list(read_texts(paths)) == ["one\n", "two", "अब", "x", "y", "z", "three", "four"]


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(UserError, match=r"bad\.txt:2: byte 0xff is not UTF-8"):
        list(read_texts([tmp_path / "bad.txt"]))
    for path in (tmp_path, tmp_path / "absent.txt", tmp_path / "absent.jsonl"):
        with pytest.raises(UserError, match="cannot read"):
            list(read_texts([path]))


def test_the_command(tmp_path, text_file, capsys, monkeypatch):
    flags = ["--family", "llama", "--layers", "1", "--hidden", "16", "--heads", "2", "--text", text_file, text_file]
    run([*flags, "--vocab-size", "640", "--output", str(tmp_path / "m")])
    assert "llama" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "m").eos_token_id == 2

    command = ["launch/init.py", *flags, "--vocab-size", "99999", "--output", str(tmp_path / "n")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as refused:
        main(run)
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--vocab-size 99999 is more than the text allows" in said
    assert not (tmp_path / "n").exists()
