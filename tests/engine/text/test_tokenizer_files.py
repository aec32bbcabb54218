"""Tokenizer files: sizes, ids and names are checked before a library reads them."""

from __future__ import annotations

import json
import os

import pytest

from engine.base.errors import UserError
from engine.text.tokenizer import load_tokenizer, train_byte_bpe
from engine.text.tokenizer_files import TOKENIZER_BYTES
from tests.greetings import GREETINGS


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    train_byte_bpe(list(GREETINGS.values()) * 2, 320).save_pretrained(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def folder(good, tmp_path):
    for name, text in good.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def refusal(folder):
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"]
)
def test_too_large_file_is_not_opened(folder, name):
    (folder / name).touch()
    os.truncate(folder / name, TOKENIZER_BYTES + 1)  # a sparse file
    assert "268,435,457 bytes, the limit for a tokenizer is 256 MiB: fetch it again" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}, "names code of its own (auto_map)"),
        ({"gguf_file": "../x.gguf"}, "names other files to load (gguf_file)"),
        ({"fast_tokenizer_files": ["../tokenizer.json"]}, "names other files to load (fast_tokenizer_files)"),
        ({"chat_template": [{"name": "../../evil", "template": "x"}]}, "has a chat template called '../../evil'"),
        ({"chat_template": [{"name": None, "template": "x"}]}, "has a chat template called None"),
        ({"model_max_length": []}, "cannot be loaded"),
        ({"eos_token": 5}, "cannot be loaded"),
    ],
)
def test_settings_naming_code_or_other_files_are_refused(folder, changes, words):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert words in refusal(folder)


def test_token_id_above_the_limit_is_refused(folder):
    """The library allocates an entry per id up to the highest: gigabytes for one id of 2^31."""
    file = folder / "tokenizer.json"
    backend = json.loads(file.read_text())
    backend["model"]["vocab"]["x" * 9] = 2**31
    file.write_text(json.dumps(backend))
    assert "has the token id 2147483648, the limit is 16,777,216" in refusal(folder)
    del backend["model"]["vocab"]["x" * 9]
    backend["added_tokens"].append({**backend["added_tokens"][0], "id": 2**40, "content": "y"})
    file.write_text(json.dumps(backend))
    assert "has the token id 1099511627776" in refusal(folder)


def test_named_chat_templates_are_kept(folder):
    file = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": "x"} for name in ("default", "tool_use", "rag-2")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    assert set(load_tokenizer(folder).chat_template) == {"default", "tool_use", "rag-2"}


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize(
    "step",
    [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    ],
    ids=["ByteLevel", "Replace"],
)
def test_steps_that_multiply_the_text_are_refused(folder, part, step):
    """Found by fuzzing: with a line of tokenizer.json repeated, a text of eight letters filled 24 GB."""
    file, names = folder / "tokenizer.json", {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
    backend = json.loads(file.read_text())
    steps = {"type": "Sequence", names.get(part, "decoders"): [{"type": "Sequence", "normalizers": [step] * 4}] * 10}
    file.write_text(json.dumps({**backend, part: steps}))
    assert f"its {part} could make a text more than 100 times longer" in refusal(folder)
    long = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 101}
    file.write_text(json.dumps({**backend, part: long}))
    assert f"its {part} could make a text" in refusal(folder)


def test_a_file_that_cannot_be_read_is_one_line(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert "Permission denied" in refusal(folder)


@pytest.mark.parametrize("config", ["{", "[1]", "[" * 200_000, '{"model_type": 3}'])
def test_a_config_that_is_no_models_does_not_stop_the_tokenizer_before_the_model_is_read(folder, config):
    """Whatever it holds: a tokenizer or one line, never another error."""
    (folder / "config.json").write_text(config)
    try:
        assert load_tokenizer(folder).eos_token
    except UserError as error:
        assert "\n" not in str(error)
