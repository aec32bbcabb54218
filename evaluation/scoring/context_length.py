"""The context length of a model, found by the rule of lm-eval."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

DEFAULT_CONTEXT_LENGTH = 2048
_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
# transformers sets model_max_length to int(1e30) for a tokenizer without a length.
_NO_LENGTH = 10**29


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens from the model's config, else from its tokenizer, else 2,048.

    BLOOM's configs have no length, because ALiBi needs none. BLOOM was trained and evaluated with 2,048 tokens.
    """
    for name in _NAMES:
        length = getattr(config, name, None)
        if length is not None:
            return int(length)
    length = tokenizer.model_max_length
    return DEFAULT_CONTEXT_LENGTH if length is None or length > _NO_LENGTH else int(length)
