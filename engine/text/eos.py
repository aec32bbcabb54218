"""The tokens that end a response: one list and one rule for all generation.

A response ends with the first of these tokens; in PPO it is the last action. SFT appends the tokenizer's own EOS to
answers, and so do chats between turns. A model whose chat template ends turns with another token (ChatML's <|im_end|>)
lists it in generation_config.json. Exported models list the same tokens there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.strict_json import read_object


def eos_ids_of(model_dir: str | Path, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """Return the tokenizer's EOS, then those of the model's generation_config.json, or else of config.json.

    UserError for anything but ids of the vocabulary. Defaults of config classes are ignored.
    """
    ids: list[int] = []
    for file in (Path(model_dir, "generation_config.json"), Path(model_dir, "config.json")):
        named = read_object(file).get("eos_token_id") if file.is_file() else None
        ids = named if isinstance(named, list) else [] if named is None else [named]
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size:
                raise UserError(
                    f"{file} names the eos_token_id {i!r:.60}, the model has ids 0 to {vocab_size - 1}: correct it"
                )
        if ids:
            break
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *ids]))
