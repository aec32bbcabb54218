"""Small tokenizers of every published kind, each with its special tokens and chat template."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engine.text.tokenizer import train_byte_bpe, train_sentencepiece
from tests.greetings import GREETINGS

TEXTS = [*GREETINGS.values(), "user assistant system <|im_start|> [INST] </s> start end\n"] * 3
VOCAB_SIZE = 640

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|head_end|>\\n\\n' + m['content'] | trim"
    " + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|head_end|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' %}{% elif m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m['content'].strip() + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def chatml() -> PreTrainedTokenizerFast:
    """Byte-level BPE without BOS; its EOS ends a turn (Qwen, SmolLM)."""
    tokenizer = train_byte_bpe(TEXTS, VOCAB_SIZE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level BPE with BOS before every text and in the chat template (Llama 3)."""
    tokenizer = train_byte_bpe(TEXTS, VOCAB_SIZE)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|head|>", "<|head_end|>"], "eos_token": "<|eot|>", "bos_token": "<|begin|>"}
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = LLAMA3
    return tokenizer


def llama2() -> PreTrainedTokenizerFast:
    """SentencePiece with BOS and a dummy prefix; BOS and EOS are its only special tokens (LLaMA 2)."""
    tokenizer = train_sentencepiece(TEXTS, VOCAB_SIZE)
    tokenizer.chat_template = LLAMA2
    return tokenizer


def legacy() -> PreTrainedTokenizerFast:
    """SentencePiece of older files: a normalizer adds the prefix, also after every special token."""
    backend = Tokenizer.from_str(llama2().backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def phi3() -> PreTrainedTokenizerFast:
    """SentencePiece with special tokens that strip the blanks after them (Phi-3)."""
    tokenizer = train_sentencepiece(TEXTS, VOCAB_SIZE)
    roles = [AddedToken(f"<|{name}|>", rstrip=True, normalized=False) for name in ("user", "assistant", "system")]
    tokenizer.add_special_tokens({"additional_special_tokens": [*roles, AddedToken("<|end|>", rstrip=True)]})
    tokenizer.chat_template = PHI3
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """Unigram with special tokens among its pieces, so plain text could match them (XLM-R, T5)."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": specials[3:]})
    tokenizer.chat_template = CHATML
    return tokenizer


KINDS = {kind.__name__: kind for kind in (chatml, llama3, llama2, legacy, phi3, unigram)}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Return the shared tokenizer of a kind. Do not change it."""
    return KINDS[kind]()
