"""`python -m datagen filter`: drop near-duplicate candidates by Alpaca's rule.

A candidate is kept if its ROUGE-L F is at most 0.7 with each seed, pool item and candidate kept before. The decisions
equal those of rouge_score's RougeScorer(["rougeL"]) (Taori et al. 2023, after Wang et al. 2023), but use an inverted
index. For candidates in other letters than a-z, words of any script replace rouge_score's tokens.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from datagen.sources import check_outputs, read_sources
from datagen.text.near_duplicates import MAX_SCORE, near_duplicates
from datagen.text.words import TOKENIZERS, Tokenizer, rouge_words
from engine.base.records import write_jsonl

_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
_MAX_OTHER_LETTERS_SHARE = 0.05


class Rejection(NamedTuple):
    """candidates[index] scores `score` > 0.7 with its nearest: pool[nearest], or candidates[nearest - len(pool)]."""

    index: int
    nearest: int
    score: float


def find_rejections(
    pool: Sequence[str], candidates: Sequence[str], tokenizer: Tokenizer = rouge_words
) -> Iterator[Rejection]:
    """Yield the candidates that score above 0.7 with a pool text or a candidate kept before, in order.

    The nearest text is the one with the highest score; among equals, the earliest. The time grows with the number of
    pairs that share rare words: comparing 52,002 instructions with each other takes about a second.
    """
    texts = [tokenizer(text) for text in pool]
    texts += [tokenizer(text) for text in candidates]
    rejected: set[int] = set()
    for matches in near_duplicates(texts, first_query=len(pool)):
        best: dict[int, tuple[float, int]] = {}
        for query, earlier, score in zip(*(column.tolist() for column in matches), strict=True):
            if earlier in rejected:
                continue
            rejected.add(query)
            if query not in best or (score, -earlier) > (best[query][0], -best[query][1]):
                best[query] = (score, earlier)
        for query, (score, earlier) in best.items():
            yield Rejection(query - len(pool), earlier, score)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool", nargs="+", default=[], metavar="FILE", help="records not to repeat, such as seeds or Alpaca"
    )
    parser.add_argument("--candidates", required=True, metavar="FILE", help="the records to filter")
    parser.add_argument("--output", required=True, metavar="FILE", help="the kept candidates, in order")
    parser.add_argument("--rejected", required=True, metavar="FILE", help="the others, with nearest text and score")
    parser.add_argument("--field", default="instruction", help="the field to compare (default: instruction)")
    parser.add_argument(
        "--tokenizer",
        choices=["auto", *sorted(TOKENIZERS)],
        default="auto",
        help="rouge: rouge_score's, only a-z and 0-9; unicode: words of any script; auto (default): unicode if more"
        " than one candidate in twenty has a letter outside a-z",
    )


def choose_tokenizer(texts: Sequence[str]) -> str:
    """Return "unicode" if more than 5 % of the texts have a letter outside a-z, else "rouge".

    In English fewer than one text in a thousand has such a letter. In other scripts rouge_score's tokenizer drops all
    but stray Latin words, and unrelated texts that share those words would count as near duplicates.
    """
    return "unicode" if _with_other_letters(texts) > _MAX_OTHER_LETTERS_SHARE * len(texts) else "rouge"


def _with_other_letters(texts: Sequence[str]) -> int:
    return sum(_OTHER_LETTER.search(text) is not None for text in texts)


def run(args: argparse.Namespace) -> None:
    check_outputs([*args.pool, args.candidates], {"--output": args.output, "--rejected": args.rejected})
    pool, candidates = read_sources(args.pool), read_sources([args.candidates])
    pool_texts = [source.text(args.field) for source in pool]
    candidate_texts = [source.text(args.field) for source in candidates]

    name = choose_tokenizer(candidate_texts) if args.tokenizer == "auto" else args.tokenizer
    tokenizer = TOKENIZERS[name]
    rejections = {r.index: r for r in find_rejections(pool_texts, candidate_texts, tokenizer)}
    everything = [*pool, *candidates]
    texts = pool_texts + candidate_texts
    write_jsonl(args.output, (c.fields for i, c in enumerate(candidates) if i not in rejections))
    write_jsonl(
        args.rejected,
        (
            candidates[r.index].fields
            | {"nearest": texts[r.nearest], "nearest_at": everything[r.nearest].where, "rouge_l": r.score}
            for r in rejections.values()
        ),
    )
    print(f"{len(candidates) - len(rejections):8,}  kept      {args.output}")
    print(f"{len(rejections):8,}  rejected  {args.rejected} (ROUGE-L above {MAX_SCORE}, {name} words)")
    if wordless := sum(not tokenizer(text) for text in candidate_texts):
        print(f"{wordless:8,}  of the kept have no word for this tokenizer, so they were not compared")
    if name == "rouge" and choose_tokenizer(candidate_texts) != name:
        count = f"{_with_other_letters(candidate_texts):,} of {len(candidates):,} candidates"
        print(f"{count} have letters that this tokenizer ignores: use --tokenizer unicode")
