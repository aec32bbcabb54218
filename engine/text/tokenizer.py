"""Load and train tokenizers, and encode prompts and responses.

A prompt and its response are encoded separately and concatenated, in training and in generation: no token spans the
border, so a response's ids do not depend on its prompt. A response continues a text, so it gets no dummy prefix (the
blank that SentencePiece puts before a text), and decoding removes none.

A record's text is only text: "</s>" in it is encoded by its characters, never as EOS. Special tokens that a template
writes are tokens.
"""

from __future__ import annotations

import copy
import gc
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.byte_fallback import decode_tokens
from engine.text.codec import codec_of, share_codec
from engine.text.templates import Piece
from engine.text.tokenizer_files import content_of, read_tokenizer_files, refusing

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
# BLOOM's splitting rule: a word with the blank before it, cut at white space and punctuation. The stops of Chinese,
# Arabic and Devanagari count as punctuation, else Hindi words would merge with the danda.
_WORDS = r" ?[^\s.,!?…。，、।۔،]+"
_BYTES = 256


_loaded: WeakValueDictionary[bytes, PreTrainedTokenizerFast] = WeakValueDictionary()


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model's directory from local files only, without running code from there.

    Folders with the same tokenizer files share one vocabulary while it is in use (copy_of): reading a large one takes
    up to ten seconds, and a run reads it with the model, with the reward model, and to try the export. UserError unless
    it is backed by the tokenizers library and has an eos id.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder} is not a directory: give the folder that holds tokenizer.json")
    content = content_of(folder)
    if (tokenizer := _loaded.get(content)) is None:
        with _paused_collector():
            tokenizer = _loaded[content] = _load(folder)
    own = copy_of(tokenizer)
    own.name_or_path = str(folder)  # which messages name
    return own


def copy_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a copy with settings of its own. It shares the vocabulary, which takes seconds to copy: add no tokens."""
    own = copy.copy(tokenizer)
    vars(own).update({name: copy.copy(x) for name, x in vars(own).items() if isinstance(x, dict | list)})
    vars(own)["_original"] = tokenizer  # which _loaded keeps while a copy is in use
    share_codec(tokenizer, own)
    return own


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Context without Python's garbage collector, which would walk a million new merges many times and free none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(folder: Path) -> PreTrainedTokenizerFast:
    settings, backend = read_tokenizer_files(folder)
    with refusing(folder):
        if backend or not (folder / "tokenizer.model").is_file():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        else:
            tokenizer = _load_sentencepiece(folder, settings)
        if tokenizer.is_fast:
            codec_of(tokenizer)  # make the codec now, so that an unusable tokenizer is refused here
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {folder} has no tokenizer.json form: convert it with transformers first")
    if not tokenizer.eos_token or tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {folder} has no eos token: set 'eos_token' in its tokenizer_config.json")
    return tokenizer


def _load_sentencepiece(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Load a directory with only a SentencePiece model; LLaMA's conventions fill gaps of tokenizer_config.json.

    transformers 5.23 would assume no BOS and, without a tokenizer_class, no dummy prefix.
    """
    family = AutoTokenizer if "tokenizer_class" in settings else LlamaTokenizer
    return family.from_pretrained(str(folder), add_bos_token=settings.get("add_bos_token", True))


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str | Sequence[Piece], first: bool = True) -> list[int]:
    """Return the token ids of a prompt: a record's text, or a template's pieces.

    BOS comes first if the tokenizer adds it (LLaMA's does, BLOOM's does not), and only once if the template writes it,
    too; without `first`, only if the template writes it.
    """
    codec = codec_of(tokenizer)
    ids = codec.encode_prompt([Piece(prompt, is_own=False)] if isinstance(prompt, str) else prompt)
    has_bos = ids[: len(codec.bos)] == [*codec.bos]
    return ids if has_bos or not first else [*codec.bos, *ids]


def encode_rendered(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[Piece]) -> list[int]:
    """Return the token ids of a chat rendered by a chat template, as transformers: the template writes BOS."""
    return codec_of(tokenizer).encode_start(pieces)


def encode_response(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the token ids of a response to append to a prompt: no BOS, no dummy prefix, EOS last."""
    return [*codec_of(tokenizer).middle.encode(text).ids, tokenizer.eos_token_id]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Decode a response up to the first EOS, without special tokens. Invalid UTF-8 becomes U+FFFD.

    The inverse of encode_response, except that SentencePiece's U+2581 comes back as a blank.
    """
    ids = list(ids)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return decode_tokens(codec_of(tokenizer).middle, ids)


def check_vocab(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """UserError if the tokenizer has an id without a row in the model's embedding."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} gives ids up to {highest}, but the model's embedding has "
            f"{vocab_size} rows: use the tokenizer that was saved with the model"
        )


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE like BLOOM's: <unk>, <s>, </s>, <pad> are ids 0 to 3, then 256 bytes, then merges.

    Encodes any text; adds no BOS. UserError, with the largest possible size, if the texts do not allow vocab_size
    tokens (a merge must occur twice).
    """
    specials = [UNK, BOS, EOS, PAD]
    smallest = len(specials) + _BYTES
    if vocab_size < smallest:
        raise UserError(f"--vocab-size {vocab_size} is below {smallest}, the special tokens and the bytes: raise it")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if (reached := backend.get_vocab_size()) < vocab_size:
        raise _too_large(vocab_size, reached)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> LlamaTokenizer:
    """Train a SentencePiece BPE with byte fallback like LLaMA's: <unk>, <s>, </s>, then 256 bytes, then pieces.

    Encodes any text; adds BOS. Equal texts give equal tokenizers. UserError, with the limit, if vocab_size is too small
    for the characters of the texts or larger than they allow.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece_model(texts, vocab_size))
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    return LlamaTokenizer(vocab=vocab, merges=_merges(vocab), add_bos_token=True, add_eos_token=False)


def train_sentencepiece_model(texts: Iterable[str], vocab_size: int) -> bytes:
    """Return the sentencepiece model file that train_sentencepiece converts."""
    # SentencePiece trains on lines; a line break is encoded as its byte. A list, because sentencepiece turns an error
    # of the caller's iterator into a RuntimeError.
    lines = [line for text in texts for line in text.split("\n") if line]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            # Longer lines are dropped silently.
            max_sentence_length=2**30,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if (mistake := _users_mistake(vocab_size, str(error))) is None:
            raise
        raise mistake from None
    return model.getvalue()


def _users_mistake(vocab_size: int, reason: str) -> UserError | None:
    """Translate an error of sentencepiece for the user."""
    if limit := re.search(r"Vocabulary size too high .* value <= (\d+)", reason):
        return _too_large(vocab_size, int(limit[1]))
    if limit := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return UserError(f"--vocab-size {vocab_size} is below {limit[1]}, the text's bytes and characters: raise it")
    if "!sentences_.empty()" in reason:
        return UserError("there is no text to train a tokenizer on: give files that hold text")
    return None


def _too_large(wanted: int, largest: int) -> UserError:
    return UserError(f"--vocab-size {wanted} is more than the text allows: give more text, or at most {largest}")


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """List all ways to join two pieces into a third, in SentencePiece's order of preference."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocab, key=vocab.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
