"""Create a small model: train a tokenizer on given text and write it with random weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.parse import main, parse_settings
from engine.init_model import ModelShape, init_model, read_texts
from engine.settings import flag


@dataclass(frozen=True)
class InitSettings:
    """Input text, vocabulary size and output directory."""

    _argument_group_name = "files"
    text: list[str] = flag("files to train the tokenizer on: plain text, or records (.jsonl, .jsonl.gz, .json)")
    vocab_size: int = flag("tokens in the vocabulary, special ones included")
    output: str = flag("directory to write, in Hugging Face layout")
    overwrite: bool = flag("replace the model in the output directory", False)
    seed: int = flag("seed of the random weights", 0)


def run(argv: Sequence[str]) -> None:
    """Write the model and print one line about it."""
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
