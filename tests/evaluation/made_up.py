"""Test helpers: small benchmark files, and tokenizers with ids that are easy to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evaluation.data.files import LocalData

Row = dict[str, Any]


def arc(number: int, answer: str = "A", num_options: int = 4, part: str = "test") -> Row:
    options = {f"option_{letter}": f"thing {letter}{number}" for letter in "abcde"[:num_options]}
    return {"id": f"made/{part}/{number}", "instruction": f"Which is {number}?", "answer": answer, **options}


def mmlu(subject: str, number: int, answer: str = "A", part: str = "test") -> Row:
    row = arc(number, answer)
    return {**row, "id": f"{subject}/{part}/{number}", "instruction": f"Which {subject} of {part} is {number}?"}


def hellaswag(number: int, label: str = "0") -> Row:
    endings = [f"ending {letter}{number}." for letter in "abcd"]
    names = {"ind": number, "activity_label": "Cooking", "ctx_a": f"Pot {number} boils.", "ctx_b": "the cook"}
    return {**names, "ctx": "", "endings": endings, "label": label}


def truthfulqa(number: int, labels: tuple[int, ...] = (1, 1, 0, 0)) -> Row:
    return {
        "question": f"Is {number} a colour?",
        "mc1_targets_choices": ["No.", "Yes.", "On Mondays."],
        "mc1_targets_labels": [1, 0, 0],
        "mc2_targets_choices": [f"Answer {position}." for position in range(len(labels))],
        "mc2_targets_labels": list(labels),
    }


def write(folder: Path, name: str, rows: list[Row]) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def everything(folder: Path, lang: str = "en") -> LocalData:
    """Write all four benchmarks in one language. The parts that shots are drawn from have thirty records or more."""
    write(folder, f"m_arc/{lang}_test", [arc(n, "ABCD"[n % 4]) for n in range(5)])
    write(folder, f"m_arc/{lang}_train", [arc(n, "ABC"[n % 3], part="train") for n in range(100, 130)])
    write(folder, f"m_hellaswag/{lang}_validation", [hellaswag(n, str(n % 4)) for n in range(30)])
    subjects = ("anatomy", "virology")
    for part, size in (("test", 3), ("val", 20), ("dev", 5)):
        rows = [mmlu(subject, n, "ABCD"[n % 4], part) for subject in subjects for n in range(size)]
        write(folder, f"m_mmlu/{lang}_{part}", rows)
    write(folder, f"m_truthfulqa/{lang}_validation", [truthfulqa(n) for n in range(6)])
    return LocalData(folder)


def byte_tokenizer(*merges: tuple[str, str], tokens_cross_words: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE without BOS. Byte b has id 3 + b, merge number n has id 259 + n; merges write " " as "Ġ"."""
    ordered = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of().__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *ordered, *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not tokens_cross_words)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _byte_of() -> dict[str, int]:
    """ByteLevel's letter -> byte. A printable byte is its own letter, the others have letters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]


def llama_tokenizer(add_bos_token: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of characters like the Hugging Face conversion of LLaMA-1's.

    A space ("▁") has id 259, "!" to "~" have 260 to 353, a line break has 13. The only merge is "▁" + "t", id 354. It
    always adds the dummy prefix: "t" is [354], and " t" is [259, 354].
    """
    vocab = {token: number for number, token in enumerate([*LLAMA_TOKENS, "▁t"])}
    backend = Tokenizer(models.BPE(vocab, [("▁", "t")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if add_bos_token:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def byte_ids(text: str) -> list[int]:
    """The ids of a text under byte_tokenizer() without merges."""
    return [3 + byte for byte in text.encode()]


def llama_ids(text: str) -> list[int]:
    """The ids of a text under llama_tokenizer() in the middle of a text: without BOS and dummy prefix."""
    ids = []
    for char in text.replace(" t", "\0"):
        ids.append(354 if char == "\0" else 259 if char == " " else 13 if char == "\n" else 260 + ord(char) - 33)
    return ids
