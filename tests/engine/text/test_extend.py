"""Extended tokenizers: old texts keep their ids and their text, new pieces replace what training says."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datagen.kits import kit_codes, load_kit
from engine.base.errors import UserError
from engine.text.extend import extend
from engine.text.tokenizer import load_tokenizer, train_byte_bpe, train_sentencepiece

KINDS = {"byte-level": train_byte_bpe, "sentencepiece": train_sentencepiece}


def saved(tokenizer, folder):
    """Return the tokenizer as it is after saving and loading, which extension builds on."""
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=KINDS)
def english(request, tmp_path_factory):
    """Return a tokenizer trained on English, which knows no other script."""
    texts = [*load_kit("en").texts, *(t.instruction for task in load_kit("en").templates.values() for t in task)]
    return saved(KINDS[request.param](texts, 400), tmp_path_factory.mktemp(request.param))


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def in_old_tokens(extension, new):
    return [
        old for i in new for old in (extension.replaced[i - extension.first_id] if i >= extension.first_id else [i])
    ]


def test_every_old_text_keeps_its_ids_where_no_new_piece_applies_and_decodes_to_itself(english):
    """In all languages that have a kit; where new pieces apply, they stand for the old tokens of the same text."""
    extension = extend(english, load_kit("ne").texts, 200)
    unchanged = 0
    for code in kit_codes():
        for text in load_kit(code).texts:
            old, new = ids(english, text), ids(extension.tokenizer, text)
            assert in_old_tokens(extension, new) == old, (code, text)
            assert extension.tokenizer.decode(new) == english.decode(old), (code, text)
            unchanged += new == old
    assert unchanged > 200
    texts = load_kit("ne").texts
    old, new = (sum(len(ids(t, text)) for text in texts) for t in (english, extension.tokenizer))
    assert new < 0.6 * old


def test_special_tokens_and_the_chat_template_stay(english):
    english.chat_template = "{{ messages[0]['content'] }}"
    extension = extend(english, load_kit("ne").texts, 20)
    assert extension.tokenizer.chat_template == english.chat_template
    assert extension.tokenizer.special_tokens_map == english.special_tokens_map
    assert extension.first_id == 1 + max(english.get_vocab().values())


def word_tokenizer(tmp_path, merges, letters="abcd"):
    """A byte-level tokenizer of a few letters with the given merges."""
    vocab = {c: i for i, c in enumerate([*letters, "Ġ", *("".join(m) for m in merges), "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return saved(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), tmp_path / "words")


def test_the_most_frequent_pair_of_old_tokens_is_merged_first(tmp_path):
    """By hand. Old: a+b. Words ab c (x 5) and d a (x 3): first ab+c, then d+a; 'b' alone is seen once."""
    tokenizer = word_tokenizer(tmp_path, [("a", "b")])
    extension = extend(tokenizer, ["abc", "abc", "abc", "abc", "abc", "da", "da", "da", "bd"], 2)
    ab = tokenizer.convert_tokens_to_ids("ab")
    letter = {c: tokenizer.convert_tokens_to_ids(c) for c in "abcd"}
    assert extension.replaced == ((ab, letter["c"]), (letter["d"], letter["a"]))
    names = [extension.tokenizer.convert_ids_to_tokens(extension.first_id + i) for i in range(2)]
    assert names == ["abc", "da"]
    assert ids(extension.tokenizer, "abcda") == [extension.first_id, extension.first_id + 1]
    assert ids(extension.tokenizer, "abcdab") == [extension.first_id, letter["d"], ab], "old merges come first"


def test_digits_and_punctuation_get_no_pieces(english):
    texts = ["१२३ 123, abc-123!"] * 50
    extension = extend(english, texts, 50)
    for number in range(len(extension.replaced)):
        piece = extension.tokenizer.decode([extension.first_id + number]).strip()
        assert not any(c.isdecimal() or c in "-,!" for c in piece), piece


def test_letters_that_sentencepiece_lacks_become_pieces_first(tmp_path):
    tokenizer = saved(train_sentencepiece(load_kit("en").texts, 400), tmp_path / "sp")
    extension = extend(tokenizer, ["नमन"] * 9, 2)
    assert extension.tokenizer.convert_ids_to_tokens([extension.first_id, extension.first_id + 1]) == ["न", "म"]
    assert [len(parts) for parts in extension.replaced] == [3, 3]  # three bytes each
    assert in_old_tokens(extension, ids(extension.tokenizer, "नमन")) == ids(tokenizer, "नमन")


def test_a_tokenizer_that_is_not_bpe_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(UserError, match="WordLevel tokenizer: only BPE can be extended"):
        extend(tokenizer, ["a"], 1)
    word = word_tokenizer(tmp_path, [])
    spec = json.loads(word.backend_tokenizer.to_str())
    spec["model"]["end_of_word_suffix"] = "</w>"
    suffixed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="</s>")
    with pytest.raises(UserError, match="marks parts of words by '</w>'"):
        extend(suffixed, ["a"], 1)
