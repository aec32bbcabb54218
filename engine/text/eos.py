"""Which tokens end a response: one list, read by one rule, for everything that generates.

A response ends with the first token of the list, whichever it is: in PPO that token is the response's last action. What
SFT appends to an answer, and what stands between the turns of a chat in a prompt template, is the tokenizer's own EOS.
A model whose chat template ends its turns with another token (ChatML's <|im_end|>) lists it in generation_config.json.
What is exported lists the same tokens there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.strict_json import read_object


def eos_ids_of(model_dir: str | Path, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """The tokenizer's EOS, then those of the model's generation_config.json, or of config.json where that names none.

    UserError for a list with anything but ids of the model's vocabulary. What a config class would assume is not asked.
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
