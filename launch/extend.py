"""Add tokens for a language to a model: `python launch/extend.py --model DIR --text FILE --add 8000 --output DIR`.

The new tokens are trained on the text and come after the model's own, whose ids stay. Their rows in the embedding and
the head start from the rows of the tokens that they replace. Continue with pretraining, which teaches the new rows.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.base.documents import read_documents
from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.models import load_model, save_model
from engine.models.grow import WAYS, grow
from engine.models.hf import check_replaceable, load_config, load_score_weight
from engine.settings import check_at_least, flag
from engine.text.extend import extend
from engine.text.fit import has_spaces, measure
from engine.text.tokenizer import check_vocab, load_tokenizer

HELDOUT_EVERY = 20  # documents, of which one is measured instead of trained on
WORTH = 0.05  # share of the tokens that must be saved, else a warning is printed
KEPT_FILES = ("generation_config.json",)


@dataclass(frozen=True)
class ExtendSettings:
    """The model, the text, and how many tokens it gets."""

    _argument_group_name = "extend"
    model: str = flag("directory of a language model with a BPE tokenizer")
    text: list[str] = flag("text of the language: .txt, .jsonl, .jsonl.gz or .json with a field text")
    output: str = flag("directory of the extended model")
    add: int = flag("tokens to add", 8000)
    lang: str = flag("language code, for the count of words: ru, zh, ne, ...", "ne")
    rows: str = flag(
        "how new rows start: mean of the old tokens' rows; or ends, the last one in the embedding and the first one in "
        "a head that is not tied",
        "mean", choices=WAYS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_at_least(1, self, "add")


def documents(paths: Sequence[str], heldout: bool) -> Iterator[str]:
    """Yield the documents to train on, or the held-out ones: each 20th."""
    for number, text in enumerate(chain.from_iterable(map(read_documents, paths)), start=1):
        if (number % HELDOUT_EVERY == 0) == heldout:
            yield text


def run(argv: Sequence[str]) -> None:
    """Write the extended model and print what it saves on held-out text."""
    (s,) = parse_settings((ExtendSettings,), argv, "launch/extend.py", __doc__.split("\n")[0])
    language, output, console = get_language(s.lang), Path(s.output), Console()
    check_replaceable(output)
    tokenizer, config = load_tokenizer(s.model), load_config(s.model)
    check_vocab(tokenizer, config.vocab_size)
    if load_score_weight(s.model) is not None:
        raise UserError(f"--model {s.model} is a reward model: extend the language model before its training")
    heldout = list(documents(s.text, heldout=True))
    if not heldout:
        raise UserError(f"--text {' '.join(s.text)} has fewer than {HELDOUT_EVERY} documents: give more text")
    extension = extend(tokenizer, documents(s.text, heldout=False), s.add)
    added = len(extension.replaced)
    if not added:
        raise UserError(f"--text {' '.join(s.text)} has no frequent pieces that the tokenizer lacks: give more text")
    if added < s.add:
        console.say(f"--add is {s.add:,}, the text has {added:,} frequent new pieces: give more text for more")

    model = load_model(s.model, config.dtype or torch.float32)
    grown = grow(model, extension.first_id, extension.replaced, s.rows)
    save_model(grown, output, extension.tokenizer)
    for name in KEPT_FILES:
        if Path(s.model, name).is_file():
            shutil.copy(Path(s.model, name), output / name)

    fits = [measure(t, heldout, has_spaces(language)) for t in (tokenizer, extension.tokenizer)]
    weights = sum(p.numel() for p in grown.parameters()) - sum(p.numel() for p in model.parameters())
    console.table(
        [f"{len(heldout):,} held-out documents", "vocabulary", "tokens per word", "bytes per token"],
        [
            [name, f"{len(t):,}", f"{fit.per_word:.2f}", f"{fit.bytes_per_token:.2f}"]
            for name, t, fit in zip(("before", "after"), (tokenizer, extension.tokenizer), fits)
        ],
    )
    before, after = (fit.tokens for fit in fits)
    console.say(f"\n  {1 - after / before:.1%} fewer tokens; {added:,} new tokens, {weights:,} new weights: {output}")
    if after > (1 - WORTH) * before:
        console.say(f"  warning: less than {WORTH:.0%} saved, too little for what new rows must learn: keep {s.model}")


if __name__ == "__main__":
    main(run)
