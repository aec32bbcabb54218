"""The tiny models and the tokenizers on which our scores are compared with lm-eval's."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import normalizers, processors

from engine.text.tokenizer import train_byte_bpe, train_sentencepiece
from tests.engine.models.tiny import randomise

CASES = {
    "byte BPE": "bloom",
    "byte BPE, BOS": "bloom",
    "SentencePiece, BOS": "llama",
    "LLaMA-1's SentencePiece": "llama",
}


def tokenizer_of(kind: str, texts: tuple[str, ...]) -> transformers.PreTrainedTokenizerFast:
    if kind.startswith("byte BPE"):
        tokenizer = train_byte_bpe(texts, 1500)
        if kind == "byte BPE, BOS":
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
            )
        return tokenizer
    tokenizer = train_sentencepiece(texts, 2500)
    if kind == "SentencePiece, BOS":
        return tokenizer
    # As in the conversion of LLaMA-1: a text that begins with a space gets a dummy prefix too.
    assert kind == "LLaMA-1's SentencePiece"
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.post_processor = processors.Sequence([])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def model_of(family: str, vocab_size: int, folder: Path) -> None:
    """Save a model of two layers with sharp attention: another shot changes its scores by some nats."""
    sizes = {"vocab_size": vocab_size, "hidden_size": 32}
    if family == "bloom":
        config = transformers.BloomConfig(n_layer=2, n_head=4, **sizes)
    else:
        config = transformers.LlamaConfig(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            **sizes,
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model, seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("query_key_value.weight", "q_proj.weight", "k_proj.weight")):
                weight.mul_(3)
            elif "embed" in name and weight.ndim == 2:
                # This gives about seven nats per token, as in real models.
                weight.mul_(0.2)
    model.save_pretrained(folder)
