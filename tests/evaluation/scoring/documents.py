"""Test helpers: small models with sharp attention, and documents that share prefixes in many ways."""

from __future__ import annotations

import random

from transformers import BloomConfig, Gemma3TextConfig, LlamaConfig

from engine.models import build_model
from evaluation.scoring.documents import Choice, Document

VOCABULARY = 97
CONFIGS = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.3, max_position_embeddings=4096,
    ),
    "gemma3": Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=8, initializer_range=0.3,
        max_position_embeddings=4096, sliding_window=40, sliding_window_pattern=2,
    ),
}  # fmt: skip


def model_of(family: str):
    return build_model(CONFIGS[family], seed=0).requires_grad_(False)


def choice_of(context: tuple[int, ...], continuation: tuple[int, ...], text: str = "text") -> Choice:
    return Choice(context, continuation, text, len(text), len(text.encode()), False)


def document_of(index: int, choices: list[Choice], gold: int | tuple[float, ...] = 0, **fields) -> Document:
    about = {"task": "made", "lang": "en", "id": f"d{index}", "shot_ids": (), "prompt": f"prompt {index}"}
    return Document(index=index, gold=gold, choices=tuple(choices), **{**about, **fields})


def documents_of(count: int, seed: int = 0) -> list[Document]:
    """Documents with contexts that share 0, 5, 250 or 270 tokens.

    Each has five choices of 1 to 9 tokens: some share their first tokens, and the last equals the first.
    """
    draw = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(n))

    common, documents = ids(270), []
    for index in range(count):
        context = common[: draw.choice([0, 5, 250, 270, 270])] + ids(draw.randrange(1, 40))
        start = ids(2)
        choices = [choice_of(context, start[: draw.randrange(3)] + ids(draw.randrange(1, 7))) for _ in range(3)]
        # A choice with a shorter context than the others, as when a token spans the border.
        resplit = choice_of(context[:-1] or context, (context[-1], *choices[0].continuation_ids))
        documents.append(document_of(index, [*choices, resplit, choices[0]]))
    return documents


def long_documents(seed: int = 0) -> list[Document]:
    """Three documents of about 3,000 tokens without a common prefix. Together they fill a forward of 8,192 rows."""
    draw = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(n))

    contexts = [ids(n) for n in (2900, 3001, 2816)]
    return [document_of(i, [choice_of(c, ids(40)), choice_of(c, ids(30))]) for i, c in enumerate(contexts)]
