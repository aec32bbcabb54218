"""Saved models load in transformers with equal logits and scores, and appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import build_model, load_config, load_model, load_score_weight, save_model
from engine.models.weight_files import write_weights
from tests.engine.models.tiny import (
    CONFIGS,
    ONE_OF_EACH,
    SEQUENCES,
    VOCABULARY,
    assert_close,
    llama,
    logits_of,
    peer_logits,
    randomise,
)

BATCH = PackedBatch.from_sequences(SEQUENCES)
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EACH_DTYPE = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]


def random_model(config, dtype=torch.float32):
    model = build_model(config, seed=0)
    randomise(model)
    return model.to(dtype)


def random_score_weight():
    return torch.randn(48, generator=torch.Generator().manual_seed(3))


def tokenizer_with(**special):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", **special)


def tokenizer_without(tokenizer, highest):
    """Return the same tokenizer without the word with id `highest`."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    del spec["model"]["vocab"][f"w{highest}"]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), unk_token="<unk>", eos_token="</s>"
    )


@torch.no_grad()
def scores_of(model, score_weight_D, batch):
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    return h_TD[batch.last_S].float() @ score_weight_D


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", EACH_DTYPE)
@torch.no_grad()
def test_transformers_loads_equal_logits(name, dtype, tmp_path):
    model = random_model(CONFIGS[name](), dtype)
    save_model(model, tmp_path / "model")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.dtype == dtype
    assert type(loaded).__name__ == loaded.config.architectures[0]
    # Each is compared with float32: two bf16 computations may differ by the sum of their errors.
    in_float32 = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager"
    )
    truth = logits_of(load_model(tmp_path / "model"), BATCH)
    assert_close(peer_logits(in_float32, SEQUENCES), truth, 1e-5)
    assert_close(peer_logits(loaded, SEQUENCES), truth, DTYPES[dtype])
    assert_close(logits_of(model, BATCH), truth, DTYPES[dtype])


WITHOUT_SCORES = ("cohere2", "apertus")  # transformers has no class for scores of these families
WITH_SCORES = [name for name in CONFIGS if not name.startswith(WITHOUT_SCORES)]


@pytest.mark.parametrize("name", WITH_SCORES)
@pytest.mark.parametrize("dtype", EACH_DTYPE)
@torch.no_grad()
def test_transformers_loads_equal_scores(name, dtype, tmp_path):
    model, score_weight_D = random_model(CONFIGS[name](pad_token_id=3), dtype), random_score_weight()
    save_model(model, tmp_path / "model", score_weight_D=score_weight_D)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(loaded).__name__ == loaded.config.architectures[0]
    assert loaded.config.num_labels == 1
    prefixes = [s[:n] for s in SEQUENCES for n in range(1, len(s) + 1) if s[n - 1] != 3]  # 3 is padding
    longest = max(map(len, prefixes))
    padded = torch.tensor([s + [3] * (longest - len(s)) for s in prefixes])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in prefixes])
    actual = loaded(padded, attention_mask=mask).logits[:, 0]
    batch = PackedBatch.from_sequences(prefixes)
    ours_in_dtype = scores_of(model, score_weight_D, batch)
    truth = scores_of(model.float(), score_weight_D, batch)  # the same weights in float32
    assert_close(ours_in_dtype, truth, DTYPES[dtype])
    assert_close(actual, truth, DTYPES[dtype])
    in_float32 = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert_close(in_float32(padded, attention_mask=mask).logits[:, 0], truth, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_save_and_load_is_exact(name, tmp_path):
    model, score_weight_D = random_model(CONFIGS[name]()), random_score_weight()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())
    assert load_score_weight(tmp_path / "model") is None
    save_model(model, tmp_path / "reward", score_weight_D=score_weight_D)
    assert torch.equal(load_score_weight(tmp_path / "reward"), score_weight_D)
    reward = load_model(tmp_path / "reward")
    assert torch.equal(scores_of(reward, score_weight_D, BATCH), scores_of(model, score_weight_D, BATCH))


def test_untied_reward_model_has_no_language_head(tmp_path):
    save_model(random_model(llama()), tmp_path / "reward", score_weight_D=random_score_weight())
    reward = load_model(tmp_path / "reward")
    with pytest.raises(UserError, match="without a language head"):
        _ = reward.head_weight
    save_model(reward, tmp_path / "again", score_weight_D=random_score_weight())
    assert load_model(tmp_path / "again").head is None


def test_score_head_with_several_labels_is_refused(tmp_path):
    AutoModelForSequenceClassification.from_config(llama(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"score head of shape \(3, 48\), expected \(1, 48\)"):
        load_score_weight(tmp_path)


@pytest.mark.parametrize(
    ("config_ids", "tokenizer_tokens", "expected"),
    [
        ({"pad_token_id": 3}, {}, 3),
        ({"pad_token_id": 3}, {"pad_token": "</s>"}, 3),
        ({"pad_token_id": None}, {"pad_token": "<pad>"}, 3),
        ({"pad_token_id": 0}, {"pad_token": "<pad>"}, 3),  # the tokenizer pads the batch
        ({"pad_token_id": 2}, {"pad_token": "</s>"}, 1),
        ({"pad_token_id": None}, {}, 1),
        ({"pad_token_id": 2, "eos_token_id": [2, 1]}, None, None),
    ],
)
def test_response_is_scored_at_its_eos_for_any_padding(config_ids, tokenizer_tokens, expected, tmp_path):
    """If EOS is the padding id, as in many models, transformers would score the token before EOS."""
    model, score_weight_D = random_model(llama(**config_ids)), random_score_weight()
    tokenizer = None if tokenizer_tokens is None else tokenizer_with(**tokenizer_tokens)
    before = tokenizer and tokenizer.pad_token
    save_model(model, tmp_path / "reward", tokenizer, score_weight_D)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype="auto")
    assert loaded.config.pad_token_id == expected
    assert model.config.pad_token_id == config_ids["pad_token_id"]
    sequences = [[1, 30, 31, 2], [1, 40, 2]]
    wanted = scores_of(model, score_weight_D, PackedBatch.from_sequences(sequences))
    with torch.no_grad():
        alone = torch.cat([loaded(torch.tensor([s])).logits[:, 0] for s in sequences])
        assert_close(alone, wanted, 1e-5)
        if tokenizer is not None:
            assert tokenizer.pad_token == before
            written = AutoTokenizer.from_pretrained(tmp_path / "reward")
            padded = written(["<s> w30 w31 </s>", "<s> w40 </s>"], padding=True, return_tensors="pt")
            assert padded.input_ids.tolist() == [[1, 30, 31, 2], [1, 40, 2, expected]]
            together = loaded(padded.input_ids, attention_mask=padded.attention_mask).logits[:, 0]
            assert_close(together, wanted, 1e-5)


NO_PADS = [-1, VOCABULARY, 60, 5]  # below 0, above the vocabulary, a row without a token, and an EOS id


@pytest.mark.parametrize("pad", NO_PADS)
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_unusable_padding_id_is_not_exported(family, pad, tmp_path):
    """transformers loads the saved model; its padding id has an embedding row and a token, or is None."""
    config = ONE_OF_EACH[family](pad_token_id=pad, bos_token_id=1, eos_token_id=2)
    model, tokenizer = random_model(config), tokenizer_with()
    tokenizer = tokenizer_without(tokenizer, 60)
    save_model(model, tmp_path / "model", tokenizer)
    save_model(model, tmp_path / "reward", tokenizer, random_score_weight(), eos_ids=(2, 5))
    assert model.config.pad_token_id == pad
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.config.pad_token_id == (5 if pad == 5 else None)
    assert load_config(tmp_path / "reward").pad_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token_id == 1
    if family not in WITHOUT_SCORES:
        scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
        assert scorer.config.pad_token_id == 1


@pytest.mark.parametrize("family", ONE_OF_EACH)
@torch.no_grad()
def test_shards_keep_their_size_and_load_here_and_in_transformers(family, tmp_path):
    model = random_model(ONE_OF_EACH[family]())
    save_model(model, tmp_path / "model", max_shard_bytes=60_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    assert all(f.stat().st_size < 60_000 + 4_000 for f in files)  # 4 kB for the header
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    stored = [tensor for file in files for tensor in load_file(file).values()]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert_close(logits_of(load_model(tmp_path / "model"), BATCH), peer_logits(loaded, SEQUENCES), 1e-5)


def test_config_names_the_saved_dtype(tmp_path):
    save_model(random_model(llama(), torch.bfloat16), tmp_path / "bf16")
    save_model(load_model(tmp_path / "bf16", torch.float32), tmp_path / "float32")
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").dtype == dtype
        assert load_config(tmp_path / name).dtype == dtype
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers 4 refuses files without it


def test_tokenizer_is_saved_with_the_model(tmp_path):
    save_model(random_model(llama()), tmp_path / "model", tokenizer_with(pad_token="<pad>"))
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("w5 w6").input_ids == [5, 6]


def test_saving_replaces_a_model_and_leaves_no_other_file(tmp_path):
    first, second = random_model(ONE_OF_EACH["bloom"]()), random_model(ONE_OF_EACH["llama"]())
    save_model(first, tmp_path / "model", max_shard_bytes=60_000)
    save_model(second, tmp_path / "model")
    assert sorted(f.name for f in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert load_model(tmp_path / "model").config.model_type == "llama"


def test_failed_save_keeps_the_old_model(tmp_path, monkeypatch):
    first = random_model(ONE_OF_EACH["bloom"]())
    save_model(first, tmp_path / "model")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.models.hf.write_shards", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(random_model(ONE_OF_EACH["llama"]()), tmp_path / "model")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_model(tmp_path / "model").embedding.weight, first.embedding.weight)


def test_old_model_survives_a_kill_while_replacing(tmp_path, monkeypatch):
    first, second = random_model(ONE_OF_EACH["bloom"]()), random_model(ONE_OF_EACH["llama"]())
    save_model(first, tmp_path / "model")
    with monkeypatch.context() as killed:
        rename = Path.rename

        def rename_but_once(source, target):
            if source.name.endswith(".partial"):
                raise KeyboardInterrupt
            rename(source, target)

        killed.setattr(Path, "rename", rename_but_once)
        with pytest.raises(KeyboardInterrupt):
            save_model(second, tmp_path / "model")
    kept = load_model(tmp_path / ".model.replaced")
    assert torch.equal(kept.embedding.weight, first.embedding.weight)
    save_model(second, tmp_path / "model")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_directory_without_model_is_never_replaced(tmp_path):
    model = random_model(llama())
    (tmp_path / "empty").mkdir()
    save_model(model, tmp_path / "empty")
    for name in ("thesis", "thesis with config.json and a folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chapter").write_text("years of work")
    (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / name / "figures").mkdir()
    (tmp_path / "file").write_text("x")
    for target in ("thesis", name, "file"):
        with pytest.raises(UserError, match="is not a model directory"):
            save_model(model, tmp_path / target)
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_weights(tmp_path, {"a": torch.ones(4), "b": torch.ones(4)}, 16)
    finally:
        os.umask(before)
    assert {f.name: oct(f.stat().st_mode)[-3:] for f in tmp_path.iterdir()} == {
        "model-00001-of-00002.safetensors": "640",
        "model-00002-of-00002.safetensors": "640",
        "model.safetensors.index.json": "640",
    }
