"""How many tokens of context a model is evaluated with, as lm-eval and the protocols before it settle it."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

DEFAULT_CONTEXT_LENGTH = 2048
_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
# What transformers puts where a tokenizer names no length: int(1e30).
_NO_LENGTH = 10**29


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens, from the model's config, else from its tokenizer, else 2,048.

    BLOOM's configs name no length, and with ALiBi it has none; 2,048 is what it was trained with and published with.
    """
    for name in _NAMES:
        length = getattr(config, name, None)
        if length is not None:
            return int(length)
    length = tokenizer.model_max_length
    return DEFAULT_CONTEXT_LENGTH if length is None or length > _NO_LENGTH else int(length)
