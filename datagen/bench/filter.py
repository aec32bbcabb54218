"""`python -m datagen.bench.filter`: time and memory of the ROUGE-L filter at full size, compared to rouge_score.

Candidates recombine the pool's instructions: the head of one joined to the tail of another, half of them with a few
words changed. As in a language model's answers, some are near duplicates. rouge_score is timed in the same run on pairs
of the same texts, as Alpaca calls it: on words tokenized beforehand, one table per pair.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time

from rouge_score.rouge_scorer import _score_lcs

from datagen.bench import print_result
from datagen.rouge_filter import find_rejections
from datagen.text.words import rouge_words
from engine.base.records import read_instructions


def recombined(texts: list[str], count: int, seed: int) -> list[str]:
    """Return `count` new instructions that mix heads, tails and words of the given ones."""
    draw = random.Random(seed)
    words = [word for text in texts[::7] for word in text.split()]
    made = []
    while len(made) < count:
        head, tail = draw.choice(texts).split(), draw.choice(texts).split()
        text = head[: round(len(head) * draw.uniform(0.3, 0.9))] + tail[round(len(tail) * draw.uniform(0.2, 0.9)) :]
        if text and draw.random() < 0.5:
            for _ in range(draw.randint(1, 4)):
                text[draw.randrange(len(text))] = draw.choice(words)
        if len(text) > 3:
            made.append(" ".join(text))
    return made


def seconds_per_pair(texts: list[str], pairs: int, seed: int) -> float:
    """Return rouge_score's seconds per pair of these texts: the median over seven samples of pairs."""
    draw = random.Random(seed)
    times = []
    for _ in range(7):
        chosen = [(rouge_words(draw.choice(texts)), rouge_words(draw.choice(texts))) for _ in range(pairs // 7)]
        begin = time.perf_counter()
        for target, prediction in chosen:
            _score_lcs(target, prediction)
        times.append((time.perf_counter() - begin) / len(chosen))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="FILE", help="instructions, e.g. Alpaca's 52,002")
    parser.add_argument(
        "--pool", type=int, default=158_000, help="pool size: the file's instructions, then recombined ones"
    )
    parser.add_argument("--candidates", type=int, default=106_000)
    parser.add_argument("--pairs", type=int, default=70_000, help="number of pairs to time rouge_score on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    texts = [record.instruction for record in read_instructions(args.data, require_output=False)]
    begin = time.perf_counter()
    replayed = list(find_rejections([], texts))
    replay_s = time.perf_counter() - begin
    made = recombined(texts, max(0, args.pool - len(texts)) + args.candidates, args.seed)
    pool = (texts + made)[: args.pool]
    candidates = made[len(made) - args.candidates :]

    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    rejections = list(find_rejections(pool, candidates))
    filter_s = time.perf_counter() - begin
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    # Alpaca compares a candidate with the pool and every candidate kept before it.
    kept = len(candidates) - len(rejections)
    pairs = len(pool) * len(candidates) + kept * len(candidates) // 2
    rouge_s = seconds_per_pair(pool[:: len(pool) // 5000 or 1] + candidates[:5000], args.pairs, args.seed) * pairs
    result = {
        "replay_texts": len(texts),
        "replay_rejected": len(replayed),
        "replay_s": round(replay_s, 2),
        "pool": len(pool),
        "candidates": len(candidates),
        "rejected": len(rejections),
        "filter_s": round(filter_s, 2),
        "peak_mib": round(peak_mib),
        "peak_mib_before": round(before_mib),
        "pairs": pairs,
        "rouge_score_hours": round(rouge_s / 3600, 1),
        "ratio_to_rouge_score": round(rouge_s / filter_s),
    }
    print_result(result)


if __name__ == "__main__":
    main()
