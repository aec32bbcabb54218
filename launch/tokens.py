"""Compare how well tokenizers fit a language: `python launch/tokens.py --lang ne --tokenizer DIR [DIR ...]`.

One language gives a row for each tokenizer, its longest words, and for a model's directory what a word costs. Several,
or `--lang all`, give a table of tokens per word, a row for each language. Fewer tokens per word leave more room in a
context and cost less time per answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import PreTrainedTokenizerFast

from datagen.kits import kit_codes, load_kit
from engine.base.errors import UserError
from engine.base.languages import LANGUAGES, Language, get_language
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.generation.kv_cache import PAGE_SIZE, page_bytes
from engine.init_model import read_texts
from engine.models.hf import empty_model, load_config
from engine.settings import flag
from engine.text.fit import has_spaces, longest_words, measure
from engine.text.tokenizer import load_tokenizer

LONGEST = 3  # words shown
Tokenizers = Mapping[str, PreTrainedTokenizerFast]  # by the directory's name as given


@dataclass(frozen=True)
class TokensSettings:
    """The languages, and the tokenizers to compare."""

    _argument_group_name = "files"
    lang: list[str] = flag("language codes, or all that have a kit")
    tokenizer: list[str] = flag("directories of tokenizers, such as models")
    text: list[str] | None = flag(
        "measure on these files, in one language, instead of the sentences of the kit: plain text, or records", None
    )


def texts_of(code: str, files: Sequence[str] | None) -> list[str]:
    """Return the texts of the files, else the sentences of the language's kit. UserError if they are empty."""
    texts = [text.strip() for text in (read_texts(files) if files else load_kit(code).texts)]
    if not any(texts):
        raise UserError(f"--text {' '.join(files or ())} holds no text: give files with sentences in the language")
    return texts


def one_language(language: Language, texts: Sequence[str], tokenizers: Tokenizers, console: Console) -> None:
    """Print a row for each tokenizer, the words with the most tokens, and what a word costs a model."""
    spaces, rows, costs = has_spaces(language), [], []
    for name, tokenizer in tokenizers.items():
        fit = measure(tokenizer, texts, spaces)
        numbers = (*((fit.per_word,) if spaces else ()), fit.per_character, fit.bytes_per_token)
        rows.append([name, f"{len(tokenizer):,}", *(f"{x:.2f}" for x in numbers), f"{fit.share_of_parts:.1%}"])
        if Path(name, "config.json").is_file():
            costs.append([name, *cost_of(name, fit.tokens / fit.words)])
    per_word = ("tokens per word",) if spaces else ()
    parts = "bytes or unknown"
    console.table([language.name, "vocabulary", *per_word, "tokens per character", "bytes per token", parts], rows)
    word = "word" if spaces else "character"
    if spaces:
        longest = [
            [name, ", ".join(f"{word} {count}" for word, count in longest_words(tokenizer, texts, LONGEST))]
            for name, tokenizer in tokenizers.items()
        ]
        console.say()
        console.table(["words with the most tokens", ""], longest)
    if costs:
        console.say()
        head = [f"what a {word} costs", "decode steps", "cache in bfloat16, kB", f"{word}s in the longest sequence"]
        console.table(head, costs)


def cost_of(model_dir: str, tokens: float) -> tuple[str, str, str]:
    """Return what a word of so many tokens costs a model: decode steps, kB of keys and values, words that fit."""
    model = empty_model(load_config(model_dir), model_dir)
    cache = tokens * page_bytes(model, torch.bfloat16) / PAGE_SIZE / 1e3
    fitting = "no limit" if model.max_length is None else f"{model.max_length / tokens:,.0f}"
    return f"{tokens:.2f}", f"{cache:.1f}", fitting


def several_languages(texts: Mapping[Language, Sequence[str]], tokenizers: Tokenizers, console: Console) -> None:
    """Print a row of tokens per word for each language, per character where words are not split."""
    rows = []
    for language, sentences in texts.items():
        spaces = has_spaces(language)
        fits = [measure(tokenizer, sentences, spaces) for tokenizer in tokenizers.values()]
        label = f"{language.name} ({language.code}{'' if spaces else ', per character'})"
        rows.append([label, *(f"{fit.per_word:.2f}" for fit in fits)])
    console.table(["tokens per word", *tokenizers], rows)


def run(argv: Sequence[str]) -> None:
    """Print the table, and what it was measured on."""
    (s,) = parse_settings((TokensSettings,), argv, "launch/tokens.py", __doc__)
    codes = [code for code in LANGUAGES if code in kit_codes()] if s.lang == ["all"] else s.lang
    languages = [get_language(code) for code in codes]
    if s.text and len(languages) > 1:
        raise UserError(f"--text is in one language, --lang has {len(languages)}: give one")
    texts = {language: texts_of(language.code, s.text) for language in languages}
    tokenizers, console = {name: load_tokenizer(name) for name in s.tokenizer}, Console()
    if len(languages) == 1:
        one_language(languages[0], texts[languages[0]], tokenizers, console)
    else:
        several_languages(texts, tokenizers, console)
    source = " ".join(s.text) if s.text else "datagen/kits"
    console.say(
        f"\n  {sum(map(len, texts.values())):,} texts of {source}; words are split at spaces, no special tokens"
    )


if __name__ == "__main__":
    main(run)
