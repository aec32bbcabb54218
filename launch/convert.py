"""Convert between GGUF files and Hugging Face directories: `python launch/convert.py --gguf FILE --output DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a file, whose folder is on the path: the packages are beside it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.base.errors import UserError
from engine.cli.parse import main, parse_settings
from engine.models import load_model, save_model
from engine.models.gguf import read_gguf, write_gguf
from engine.models.hf import check_replaceable
from engine.settings import flag
from engine.text.eos import eos_ids_of
from engine.text.gguf_tokenizer import fields_of, tokenizer_of
from engine.text.tokenizer import check_vocab, load_tokenizer


@dataclass(frozen=True)
class ConvertSettings:
    """What is converted, and where it goes."""

    _argument_group_name = "files"
    output: str = flag("the directory or .gguf file to write")
    gguf: str | None = flag("a GGUF file to read; a Hugging Face directory is written", None)
    to_gguf: str | None = flag("a Hugging Face directory to read; a GGUF file is written", None)
    tokenizer: str | None = flag("directory of the tokenizer, when the one in the GGUF file cannot be rebuilt", None)
    dtype: str = flag("of the weights in the directory", "bfloat16", choices=["float32", "float16", "bfloat16"])
    quantisation: str = flag("of the matrices in the GGUF file", "f16", choices=["f32", "f16", "q8_0"])


def run(argv: Sequence[str]) -> None:
    """Read one form, write the other, print what was written."""
    (s,) = parse_settings((ConvertSettings,), argv, "python launch/convert.py", __doc__.split("\n")[0])
    if (s.gguf is None) == (s.to_gguf is None):
        raise UserError("give either --gguf FILE or --to-gguf DIR")
    output = Path(s.output)
    if s.gguf:
        read(s, output)
    else:
        write(s, output)


def read(s: ConvertSettings, output: Path) -> None:
    """GGUF file to Hugging Face directory."""
    check_replaceable(output)
    model, fields = read_gguf(Path(s.gguf), getattr(torch, s.dtype))
    tokenizer = load_tokenizer(s.tokenizer) if s.tokenizer else tokenizer_of(fields, f"--gguf {s.gguf}")
    check_vocab(tokenizer, model.vocab_size)
    save_model(model, output, tokenizer)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{output}: {model.config.model_type}, {weights:,} weights in {s.dtype}, {len(tokenizer):,} tokens")


def write(s: ConvertSettings, output: Path) -> None:
    """Hugging Face directory to GGUF file."""
    if output.suffix != ".gguf" or output.exists():
        raise UserError(f"--output {output}: give the name of a new file that ends in .gguf")
    model, tokenizer = load_model(s.to_gguf, torch.float32, "cpu"), load_tokenizer(s.tokenizer or s.to_gguf)
    check_vocab(tokenizer, model.vocab_size)
    eos_ids_of(s.to_gguf, tokenizer, model.vocab_size)
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(partial, model, tokenizer, s.quantisation, fields_of)
        partial.replace(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{output}: {output.stat().st_size / 1e6:,.1f} MB, matrices in {s.quantisation}")


if __name__ == "__main__":
    main(run)
