"""Rebuild a tokenizer from the fields of a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # token types of the format
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
# How each kind of byte-level BPE splits a text before merging, by the format's name. None: GPT-2's rule.
_SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "default": None,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
    "bloom": _BLOOM,
}
_DIGITS_APART = {"smollm"}
_NFC = {"qwen2"}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token is not merged from parts


def tokenizer_of(fields: Mapping[str, Any], where: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the `tokenizer.*` fields of a GGUF file describe.

    UserError, which begins with `where`, for missing fields and for kinds of tokenizer that are not supported.
    """
    tokens = _list(fields, "tokenizer.ggml.tokens", where)
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(f"{where} has {len(tokens)} tokens and {len(types)} types, or a token twice: download it again")
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(fields, tokens, where)
    elif kind == "llama":
        backend = _sentencepiece(fields, tokens, types, where)
    else:
        raise UserError(f"{where} has a tokenizer of kind {kind!r}, supported are 'gpt2' and 'llama': give --tokenizer")
    controls = [AddedToken(token, special=True, normalized=False) for token, t in zip(tokens, types) if t == CONTROL]
    backend.add_special_tokens(controls)
    backend.add_tokens([_user_defined(token, kind, fields) for token, t in zip(tokens, types) if t == USER_DEFINED])
    names = {name: _special(fields, tokens, name, where) for name in ("bos", "eos", "unknown", "padding")}
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama") and names["bos"]:
        bos = names["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=names["bos"], eos_token=names["eos"], unk_token=names["unknown"],
        pad_token=names["padding"], clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
    template = fields.get("tokenizer.chat_template")
    tokenizer.chat_template = template if isinstance(template, str) else None
    return tokenizer


def fields_of(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> dict[str, Any]:
    """Return the `tokenizer.*` fields that describe a tokenizer: the inverse of `tokenizer_of`.

    Rows of the embedding without a token get an unused name. UserError for a tokenizer that the format cannot express.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = backend["model"], {token["id"]: token for token in backend["added_tokens"]}
    if model.get("type") != "BPE":
        raise UserError(f"a {model.get('type')} tokenizer cannot be written as GGUF: supported is BPE")
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [names.get(i, f"<unused{i}>") for i in range(vocab_size)]
    types = [_type_of(i, names, added) for i in range(vocab_size)]
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        types = [BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else t for token, t in zip(tokens, types)]
        order = {"".join(merge): -float(i + 1) for i, merge in reversed(list(enumerate(merges)))}
        prefix = "Prepend" in json.dumps(backend["normalizer"]) or tokenizer.encode("a", add_special_tokens=False) == (
            tokenizer.encode("\u2581a", add_special_tokens=False)
        )
        fields |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": prefix}
        fields["tokenizer.ggml.scores"] = [order.get(token, -1e9) for token in tokens]
        taken = set(tokens)
        for i, token in enumerate(tokens):  # the format's readers look for these in the text as it is
            if types[i] == USER_DEFINED and (blanks := token.replace("▁", " ")) not in taken:
                tokens[i] = blanks
    else:
        fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _name_of_split(backend["pre_tokenizer"])}
        fields["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    fields["tokenizer.ggml.token_type"] = types
    for name, i in (
        ("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id), ("unknown", tokenizer.unk_token_id),
        ("padding", tokenizer.pad_token_id),
    ):  # fmt: skip
        fields[f"tokenizer.ggml.{name}_token_id"] = i
    first = tokenizer("a").input_ids[:1]
    fields["tokenizer.ggml.add_bos_token"] = first == [tokenizer.bos_token_id]
    fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


def _user_defined(token: str, kind: str, fields: Mapping[str, Any]) -> AddedToken:
    """Return a token that is found before merging. One with SentencePiece's blank is found after blanks became that."""
    blanks = kind == "llama" and "▁" in token and not fields.get("tokenizer.ggml.add_space_prefix", True)
    return AddedToken(token, normalized=blanks)


def _type_of(i: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    if i not in names:
        return UNUSED
    if i in added:
        return CONTROL if added[i]["special"] else USER_DEFINED
    return NORMAL


def _name_of_split(pre_tokenizer: Mapping[str, Any]) -> str:
    """Return the format's name for a byte-level BPE's splitting rule. UserError for a rule without one."""
    for name in _SPLITS:
        if json.loads(_splitter(name).__getstate__()) == pre_tokenizer:
            return name
    raise UserError(
        "the tokenizer splits text by a rule that has no name in the GGUF format: llama.cpp could not read it"
    )


def _splitter(name: str) -> Any:
    split = _SPLITS[name]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if name in _DIGITS_APART else []
    if split:
        steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str], where: str) -> Tokenizer:
    name = fields.get("tokenizer.ggml.pre", "gpt-2")
    if name not in _SPLITS:
        known = ", ".join(sorted(_SPLITS))
        raise UserError(f"{where} splits text as {name!r}, supported are {known}: give --tokenizer")
    merges = [tuple(merge.split(" ", 1)) for merge in _list(fields, "tokenizer.ggml.merges", where)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if any(len(merge) != 2 or not set(merge) <= vocab.keys() or "".join(merge) not in vocab for merge in merges):
        raise UserError(f"{where} has a merge that is not of two tokens: download it again")
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=name in _WHOLE_WORDS_FIRST))
    if name in _NFC:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(name)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str) -> Tokenizer:
    scores = _list(fields, "tokenizer.ggml.scores", where)
    if len(scores) != len(tokens):
        raise UserError(f"{where} has {len(tokens)} tokens and {len(scores)} scores: download it again")
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = _special(fields, tokens, "unknown", where)
    backend = Tokenizer(
        models.BPE(vocab, _merges(vocab, scores, types), unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges(vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """List all ways to join two tokens into a third, best score first, as SentencePiece merges."""
    merges = []
    for piece, i in vocab.items():
        if types[i] in (CONTROL, USER_DEFINED, BYTE):  # found whole, before merging
            continue
        cuts = [
            (vocab[piece[:cut]], vocab[piece[cut:]], cut)
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        merges += [(-scores[i], order, piece[:cut], piece[cut:]) for order, (*_, cut) in enumerate(sorted(cuts))]
    return [(left, right) for _, _, left, right in sorted(merges, key=lambda m: m[0])]


def _special(fields: Mapping[str, Any], tokens: Sequence[str], name: str, where: str) -> str | None:
    i = fields.get(f"tokenizer.ggml.{name}_token_id")
    if i is None:
        return None
    if not 0 <= i < len(tokens):
        raise UserError(f"{where} has {name}_token_id {i} and {len(tokens)} tokens: download it again")
    return tokens[i]


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise UserError(f"{where} has no list {name}: download it again, or give --tokenizer")
    return value
