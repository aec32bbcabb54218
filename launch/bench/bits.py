"""Compare models on held-out text: `python launch/bench/bits.py --model DIR [DIR ...] --text FILE [FILE ...]`.

A table of bits per byte, as launch/pretrain.py measures them, a row for each model, and its difference from the first
one with a 95 % bootstrap interval over documents. Models with different tokenizers are compared on the same documents.
With --trunk-dtype, a row for each model and each way to store all of its layers: what quantisation costs.

D documents, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import nn

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.models import load_config, load_model
from engine.packing import first_fit_decreasing
from engine.settings import check_at_least, flag
from engine.settings.trunk import TRUNK_DTYPES
from engine.text.tokenizer import check_vocab, load_tokenizer
from engine.training.corpus import HeldOutText, names_of_files
from engine.training.modules import LanguageModule
from engine.training.pretrain import packed
from kernels.common.bench import json_line

RESAMPLES = 4_000
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class BitsSettings:
    """The models and the text."""

    _argument_group_name = "bits"
    model: list[str] = flag("model directories; the others are compared with the first one")
    text: list[str] = flag("held-out text, as --eval-data of launch/pretrain.py")
    trunk_dtype: list[str] | None = flag(f"ways to store all layers: {', '.join(TRUNK_DTYPES)} (default: model)", None)
    max_length: int = flag("tokens at which longer documents are cut", 512)
    eval_tokens: int = flag("measure whole documents from the start of each file, up to this", 1_000_000)

    def __post_init__(self) -> None:
        for name in self.trunk_dtypes:
            if name not in TRUNK_DTYPES:
                raise UserError(f"--trunk-dtype has {name!r}: give some of {', '.join(TRUNK_DTYPES)}")
        check_at_least(3, self, "max_length")
        check_at_least(1, self, "eval_tokens")

    @property
    def trunk_dtypes(self) -> list[str]:
        return self.trunk_dtype or ["model"]


@torch.no_grad()
def bits_of(model: nn.Module, text: HeldOutText) -> np.ndarray:
    """Return float64 [D]: the loss of each document in bits. The model is float32."""
    module = LanguageModule(model).eval()
    bits_D = np.zeros(text.documents)
    for pack in first_fit_decreasing([len(e.tokens) for e in text.examples], TOKENS_AT_ONCE):
        chosen = [text.examples[i] for i in pack]
        batch, columns_A = packed(chosen)
        logprobs = module(batch, None, columns_A).double().split([len(e.tokens) - 1 for e in chosen])
        for example, logprob_T in zip(chosen, logprobs):
            bits_D[document_of(example.id)] -= logprob_T.sum().item() / math.log(2)
    return bits_D


def document_of(example_id: str) -> int:
    """Return which document a sequence of a HeldOutText is of."""
    return int(example_id.rpartition(":")[2].partition(".")[0])


def bytes_of(text: HeldOutText) -> np.ndarray:
    """Return float64 [D]: the bytes of each document."""
    bytes_D = np.zeros(text.documents)
    for example, size in zip(text.examples, text.bytes):
        bytes_D[document_of(example.id)] += size
    return bytes_D


def interval(bits_D: np.ndarray, bytes_D: np.ndarray) -> tuple[float, float, float]:
    """Return bits per byte and the 95 % bootstrap interval over documents (percentiles; Efron and Tibshirani 1993).

    `bits_D` may be the differences of two models on the same documents. The same seed always.
    """
    draws = np.random.default_rng(0).integers(0, len(bits_D), (RESAMPLES, len(bits_D)))
    low, high = np.percentile(bits_D[draws].sum(1) / bytes_D[draws].sum(1), [2.5, 97.5])
    return bits_D.sum() / bytes_D.sum(), float(low), float(high)


def shown(path: str, trunk_dtype: str) -> str:
    """Return the name of a row."""
    return path if trunk_dtype == "model" else f"{path} {trunk_dtype}"


def run(argv: Sequence[str]) -> None:
    """Print the table of each file, and one JSON line."""
    (s,) = parse_settings((BitsSettings,), argv, "launch/bench/bits.py", __doc__.split("\n")[0])
    names, console = names_of_files(s.text), Console()
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in names}
    for path in s.model:
        tokenizer, layers = load_tokenizer(path), load_config(path).num_hidden_layers
        texts = [
            HeldOutText.read(name, file, tokenizer, s.max_length, s.eval_tokens) for name, file in zip(names, s.text)
        ]
        for dtype in s.trunk_dtypes:
            model = load_model(path, torch.float32, "cpu", dtype, layers if dtype != "model" else 0)
            check_vocab(tokenizer, model.vocab_size)
            for name, text in zip(names, texts):
                found[name][shown(path, dtype)] = bits_of(model, text), bytes_of(text)
    result, first = [], shown(s.model[0], s.trunk_dtypes[0])
    for name, file in zip(names, s.text):
        first_D, bytes_D = found[name][first]
        rows = []
        for row, (bits_D, own_D) in found[name].items():
            if len(own_D) != len(bytes_D):
                raise UserError(f"--eval-tokens is {s.eval_tokens}: {row} reads fewer documents of {file}, raise it")
            level, difference = interval(bits_D, bytes_D), interval(bits_D - first_D, bytes_D)
            words = "" if row == first else f"{difference[0]:+.4f}  ({difference[1]:+.4f} to {difference[2]:+.4f})"
            rows.append([row, f"{level[0]:.4f}  ({level[1]:.4f} to {level[2]:.4f})", words])
            result.append({"text": name, "model": row, "bits_per_byte": level, "difference": difference})
        console.table([f"{name}: {len(bytes_D):,} documents", "bits per byte", f"minus {first}"], rows)
        console.say()
    print(json_line(result))


if __name__ == "__main__":
    main(run)
