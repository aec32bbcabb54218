"""Tokenizers: parity with sentencepiece and transformers, responses that decode to their text, and refused files."""

import gc
import json
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.tokenizer import (
    check_vocab,
    decode,
    encode_prompt,
    encode_response,
    load_tokenizer,
    train_byte_bpe,
    train_sentencepiece,
    train_sentencepiece_model,
)
from tests.greetings import GREETINGS

TEXTS = list(GREETINGS.values()) * 2
ODD_TEXTS = [
    *GREETINGS.values(),
    "",
    " ",
    " leading",
    "trailing ",
    "two  blanks   three",
    "tab\tline\nbreak\n\n\r\nend\n",
    "12345 678.90",
    "</s> is written <s>here</s><unk><pad><0x41>",
    "unseen: 가나다 ქართული 😀👩‍👩‍👧 \x00\x7f\u200d\ufeff",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VOCAB_SIZE = 640


@pytest.fixture(scope="module")
def byte_bpe():
    return train_byte_bpe(TEXTS, VOCAB_SIZE)


@pytest.fixture(scope="module")
def spm():
    return train_sentencepiece(TEXTS, VOCAB_SIZE)


@pytest.fixture(scope="module", params=["byte_bpe", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def sentencepiece_processor(add_dummy_prefix):
    """Return the sentencepiece library's processor for the same model."""
    model = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece_model(TEXTS, VOCAB_SIZE))
    model.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def test_special_ids_and_sizes(byte_bpe, spm):
    assert byte_bpe.convert_ids_to_tokens([0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert spm.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    for tokenizer in (byte_bpe, spm):
        assert len(tokenizer) == VOCAB_SIZE
        assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_ids_equal_sentencepiece(spm, text):
    assert encode_prompt(spm, text) == [1, *sentencepiece_processor(True).encode(text)]
    assert encode_response(spm, text) == [*sentencepiece_processor(False).encode(text), 2]


def test_unseen_characters_fall_back_to_bytes(spm):
    pieces = spm.convert_ids_to_tokens(encode_response(spm, "가"))
    assert pieces == ["<0xEA>", "<0xB0>", "<0x80>", "</s>"]


# Before a text that begins with a blank, sentencepiece adds a dummy prefix and transformers does not. We add it.
@pytest.mark.parametrize("text", [text for text in ODD_TEXTS if not text.startswith(" ")])
def test_prompt_ids_equal_transformers(tokenizer, text):
    assert encode_prompt(tokenizer, text) == tokenizer(text, split_special_tokens=True).input_ids


def test_bos_follows_the_tokenizer(byte_bpe, spm):
    assert encode_prompt(spm, "a")[0] == 1
    assert 1 not in encode_prompt(byte_bpe, "a")
    assert (encode_prompt(spm, ""), encode_prompt(byte_bpe, "")) == ([1], [])


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_response_decodes_to_its_text(tokenizer, text):
    ids = encode_response(tokenizer, text)
    assert ids.count(2) == 1
    assert ids[-1] == 2
    assert 1 not in ids
    assert decode(tokenizer, ids) == text


@given(text=ANY_TEXT)
def test_any_response_decodes_to_its_text(byte_bpe, spm, text):
    assert decode(byte_bpe, encode_response(byte_bpe, text)) == text
    assert decode(spm, encode_response(spm, text)) == text.replace("\u2581", " ")


def test_decode_stops_at_eos_and_skips_special_tokens(tokenizer):
    hello, more = encode_response(tokenizer, "hello")[:-1], encode_response(tokenizer, "more")
    assert decode(tokenizer, [1, *hello, 0, 2, *more]) == "hello"
    assert decode(tokenizer, []) == ""
    assert decode(tokenizer, [2]) == ""


def test_half_a_character_decodes_to_the_replacement_character(byte_bpe, spm):
    for tokenizer in (byte_bpe, spm):
        assert "\ufffd" in decode(tokenizer, encode_response(tokenizer, "가")[:1])


def test_saved_tokenizers_load_and_encode_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded, plain = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ODD_TEXTS:
        assert encode_prompt(loaded, text) == encode_prompt(tokenizer, text)
        assert encode_response(loaded, text) == encode_response(tokenizer, text)
        assert plain(text).input_ids == tokenizer(text).input_ids
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_equal_tokenizers_of_two_folders_name_their_own(byte_bpe, tmp_path):
    loaded = []
    for name in ("base", "sft"):
        byte_bpe.save_pretrained(tmp_path / name)
        loaded.append(load_tokenizer(tmp_path / name))
    assert [tokenizer.name_or_path for tokenizer in loaded] == [str(tmp_path / "base"), str(tmp_path / "sft")]


def test_bare_sentencepiece_file_loads_with_llama_defaults(spm, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece_model(TEXTS, VOCAB_SIZE))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = load_tokenizer(tmp_path)
    for text in ODD_TEXTS:
        assert encode_prompt(loaded, text) == encode_prompt(spm, text)
        assert encode_response(loaded, text) == encode_response(spm, text)


def test_dummy_prefix_of_older_files_is_handled(spm, tmp_path):
    """In LLaMA files written by transformers 4 a normalizer adds the dummy prefix."""
    old = Tokenizer.from_str(spm.backend_tokenizer.to_str())
    old.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    old.pre_tokenizer = pre_tokenizers.Sequence([])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=old, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for text in ODD_TEXTS:
        assert encode_prompt(wrapped, text) == encode_prompt(spm, text)
        assert encode_response(wrapped, text) == encode_response(spm, text)
        assert decode(wrapped, encode_response(wrapped, text)) == text


def test_byte_level_tokenizer_with_bos(byte_bpe):
    """As in Llama 3: only the post-processor says that BOS, and maybe EOS, is added."""
    backend = Tokenizer.from_str(byte_bpe.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert encode_prompt(tokenizer, "a b") == [1, *encode_prompt(byte_bpe, "a b")]
    assert encode_response(tokenizer, "a b") == encode_response(byte_bpe, "a b")


def test_saved_truncation_and_padding_are_ignored():
    backend = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1, "[P]": 2}, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.enable_truncation(2)
    backend.enable_padding(length=8, pad_id=2, pad_token="[P]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="[P]")
    assert encode_response(tokenizer, "aaaa") == [0, 0, 0, 0, 1]


def test_training_is_deterministic_and_silent(byte_bpe, spm):
    code = (
        "from engine.text.tokenizer import *; from tests.greetings import GREETINGS\n"
        "for train in (train_byte_bpe, train_sentencepiece):\n"
        f"    print(train(list(GREETINGS.values()) * 2, {VOCAB_SIZE}).backend_tokenizer.to_str())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [byte_bpe.backend_tokenizer.to_str(), spm.backend_tokenizer.to_str()]
    assert run.stderr == ""


@pytest.mark.parametrize("train", [train_byte_bpe, train_sentencepiece])
def test_impossible_vocab_size_names_a_possible_one(train):
    with pytest.raises(UserError, match=r"--vocab-size 90000 is more than the text allows: .* at most (\d+)") as caught:
        train(TEXTS, 90000)
    largest = int(str(caught.value).split()[-1])
    assert len(train(TEXTS, largest)) == largest
    with pytest.raises(UserError, match=r"--vocab-size 100 is below (\d+)") as caught:
        train(TEXTS, 100)
    smallest = int(str(caught.value).split(" is below ")[1].split(",")[0])
    assert len(train(TEXTS, smallest)) == smallest


def test_byte_merge_needs_two_occurrences():
    assert len(train_byte_bpe(["ab", "ab", "cd"], 261)) == 261
    with pytest.raises(UserError, match="at most 261"):
        train_byte_bpe(["ab", "ab", "cd"], 262)


@pytest.mark.parametrize("train", [train_byte_bpe, train_sentencepiece])
def test_error_of_the_text_iterator_reaches_the_caller(train):
    def texts():
        yield "some text"
        raise UserError("x.txt:2: cannot be read")

    with pytest.raises(UserError, match="x.txt:2"):
        train(texts(), 300)


def test_training_without_text_is_an_error():
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", "\n"], 300)
    with pytest.raises(UserError, match="at most 260"):
        train_byte_bpe([], 300)


def test_check_vocab_names_both_numbers(byte_bpe):
    check_vocab(byte_bpe, VOCAB_SIZE)
    check_vocab(byte_bpe, VOCAB_SIZE + 128)
    with pytest.raises(UserError, match=r"ids up to 639, .* has 639 rows"):
        check_vocab(byte_bpe, VOCAB_SIZE - 1)


def test_bad_tokenizer_folder_is_one_line(byte_bpe, tmp_path):
    def refusal(folder):
        with pytest.raises(UserError) as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "is not a directory" in refusal(tmp_path / "absent")
    assert "holds no tokenizer" in refusal(tmp_path)

    byte_bpe.save_pretrained(tmp_path)
    settings_file, backend_file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    settings, backend = settings_file.read_text(), backend_file.read_text()

    without_eos = {key: value for key, value in json.loads(settings).items() if key != "eos_token"}
    settings_file.write_text(json.dumps(without_eos))
    assert "has no eos token" in refusal(tmp_path)
    settings_file.write_text(json.dumps({**without_eos, "eos_token": ""}))
    assert "has no eos token" in refusal(tmp_path)
    settings_file.write_text("{")
    assert "cannot be read as JSON" in refusal(tmp_path)
    settings_file.write_text("[]")
    assert "must hold one JSON object" in refusal(tmp_path)
    settings_file.write_text(settings)
    backend_file.write_text(backend[: len(backend) // 2])
    assert "cannot be read as JSON" in refusal(tmp_path)
    backend_file.write_text("{}")
    assert "it is no tokenizer file" in refusal(tmp_path)


def test_code_in_the_folder_never_runs(byte_bpe, tmp_path):
    byte_bpe.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    try:
        load_tokenizer(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


def test_loading_opens_no_socket(byte_bpe, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    byte_bpe.save_pretrained(tmp_path)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert load_tokenizer(tmp_path).eos_token_id == 2


def test_equal_files_are_read_once_and_each_tokenizer_has_settings_of_its_own(tmp_path, monkeypatch):
    trained = train_byte_bpe(TEXTS, 300)
    for name in ("a", "b", "c"):
        trained.save_pretrained(tmp_path / name)
    first = load_tokenizer(tmp_path / "a")
    first.chat_template, first.pad_token = "{{ 1 }}", "<unk>"
    first.init_kwargs["x"] = 1
    read = []
    monkeypatch.setattr("engine.text.tokenizer._load", lambda folder: read.append(folder.name) or trained)
    second = load_tokenizer(tmp_path / "b")
    assert read == [] and second is not first and second.backend_tokenizer is first.backend_tokenizer
    assert (second.chat_template, second.pad_token, "x" in second.init_kwargs) == (None, "<pad>", False)

    (tmp_path / "c" / "chat_template.jinja").write_text("{{ 2 }}")
    load_tokenizer(tmp_path / "c")
    (tmp_path / "b" / "config.json").write_text('{"model_type": "bloom"}')
    load_tokenizer(tmp_path / "b")
    assert read == ["c", "b"]
    del first, second
    gc.collect()
    load_tokenizer(tmp_path / "a")
    assert read == ["c", "b", "a"]  # it is kept only while it is in use
