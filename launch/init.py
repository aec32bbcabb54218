"""Make a small model from nothing: train a tokenizer on given text and write random weights beside it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a file, whose folder is on the path: the packages are beside it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.parse import main, parse_settings
from engine.init_model import ModelShape, init_model, read_texts
from engine.settings import flag


@dataclass(frozen=True)
class InitSettings:
    """What the model is made from, and where it goes."""

    _argument_group_name = "files"
    text: list[str] = flag("files to train the tokenizer on: plain text, or records (.jsonl, .jsonl.gz, .json)")
    vocab_size: int = flag("tokens in the vocabulary, special ones included")
    output: str = flag("directory to write, in Hugging Face layout")
    overwrite: bool = flag("replace the model that the output directory holds", False)
    seed: int = flag("seed of the random weights", 0)


def run(argv: Sequence[str]) -> None:
    """Read the flags, write the model, say what was written."""
    shape, settings = parse_settings((ModelShape, InitSettings), argv, "launch/init.py", __doc__)
    weights = init_model(
        read_texts(settings.text),
        settings.vocab_size,
        settings.output,
        settings.seed,
        settings.overwrite,
        **dataclasses.asdict(shape),
    )
    print(f"{settings.output}: {shape.family}, {weights:,} weights, vocabulary {settings.vocab_size:,}")


if __name__ == "__main__":
    main(run)
