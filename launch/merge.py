"""Merge models into their mean: `python launch/merge.py --model A --model B --weights 0.7,0.3 --output DIR`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file, whose folder is on the path: the packages are beside it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from engine.base.errors import UserError
from engine.cli.parse import main, parse_settings
from engine.models.hf import check_replaceable, whole_model, write_all_but_weights
from engine.models.merge import open_merge
from engine.models.weight_files import write_shards
from engine.run.model_card import write_card
from engine.settings import flag
from engine.text.eos import eos_ids_of
from engine.text.tokenizer import check_vocab, load_tokenizer

SHARD_BYTES = 2_000_000_000  # of merged weights in memory at once


@dataclass(frozen=True)
class MergeSettings:
    """Which models are merged, and where the mean goes."""

    _argument_group_name = "merge"
    model: list[str] = flag("models of equal configs and tokenizers, two or more", action="extend")
    output: str = flag("directory to write, in Hugging Face layout")
    weights: str | None = flag("a number above 0 for each model, such as 0.7,0.3 (default: equal ones)", None)
    lang: str | None = flag("language code, for the model card", None)

    def __post_init__(self) -> None:
        if len(self.model) < 2:
            raise UserError(f"--model names one model, {self.model[0]}: give two or more")
        if len(self.shares) != len(self.model):
            raise UserError(
                f"--weights has {len(self.shares)} numbers and there are {len(self.model)} models: give one for each"
            )

    @property
    def shares(self) -> list[float]:
        """The weight of each model, divided by their sum."""
        words = self.weights.split(",") if self.weights else ["1"] * len(self.model)
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = [math.nan]
        if not all(0 < number < math.inf for number in numbers):
            raise UserError(f"--weights is {self.weights}: give finite numbers above 0 with commas, such as 0.7,0.3")
        return [number / math.fsum(numbers) for number in numbers]


def run(argv: Sequence[str]) -> None:
    """Write the mean of the models and print what was written."""
    (s,) = parse_settings((MergeSettings,), argv, "python launch/merge.py", __doc__.split("\n")[0])
    output, paths = Path(s.output), [Path(path) for path in s.model]
    if any(path.resolve() == output.resolve() for path in paths):
        raise UserError(f"--output {output} is one of the models: give another directory")
    check_replaceable(output)
    model, read = open_merge(paths, s.shares)
    tokenizer = equal_tokenizer(paths)
    check_vocab(tokenizer, model.vocab_size)
    eos_ids = eos_ids_of(paths[0], tokenizer, model.vocab_size)
    inputs = {f"model {n}": f"{path}, weight {share:.4g}" for n, (path, share) in enumerate(zip(paths, s.shares), 1)}
    inputs["merge"] = "the weighted mean of each tensor, summed in float32"
    try:
        with whole_model(output) as partial:
            weights = write_all_but_weights(model, partial, tokenizer, None, None, eos_ids)

            def mean_of(name: str) -> Tensor:
                own = weights[name].read()
                return read(name) if own.is_meta else own  # a family's constants are known

            write_shards(partial, {name: weight.nbytes for name, weight in weights.items()}, mean_of, SHARD_BYTES)
            write_card(partial, "merge", {"lang": s.lang}, inputs, {}, tokenizer, eos_ids)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): choose another place") from error
    count, dtype = sum(p.numel() for p in model.parameters()), str(model.head_weight.dtype).removeprefix("torch.")
    shown = " + ".join(f"{share:.4g} {path}" for path, share in zip(paths, s.shares))
    print(f"{output}: {shown}; {model.config.model_type}, {count:,} weights in {dtype}")


def equal_tokenizer(paths: Sequence[Path]) -> Any:
    """Return the first model's tokenizer. UserError if another model's gives other ids or special tokens."""
    first, *others = [load_tokenizer(path) for path in paths]
    for path, other in zip(paths[1:], others):
        if first.backend_tokenizer.to_str() != other.backend_tokenizer.to_str():
            raise UserError(
                f"{path} and {paths[0]} have different tokenizers: only models with equal ones can be merged"
            )
        if first.special_tokens_map != other.special_tokens_map:
            raise UserError(
                f"{path} and {paths[0]} have different special tokens: make their tokenizer_config.json equal"
            )
    return first


if __name__ == "__main__":
    main(run)
