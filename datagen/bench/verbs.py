"""`python -m datagen.bench.verbs`: how often the rules and a spaCy pipeline find the same root verb and object.

Neither is a gold standard: spaCy's small English pipeline takes many imperatives for nouns ("List five facts").
"""

from __future__ import annotations

import argparse
import random

from datagen.bench import print_result
from datagen.statistics.root_verbs import by_rules, by_spacy
from engine.base.records import read_instructions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="FILE", help="instructions in English")
    parser.add_argument("--spacy", default="en_core_web_sm", metavar="MODEL")
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    texts = [record.instruction for record in read_instructions(args.data, require_output=False)]
    texts = random.Random(args.seed).sample(texts, min(args.sample, len(texts)))
    rules, spacy = list(by_rules(texts)), list(by_spacy(args.spacy)(texts))
    pairs = list(zip(rules, spacy, strict=True))
    both = [(r, s) for r, s in pairs if r.object and s.object]
    result = {
        "instructions": len(texts),
        "object_by_both": round(len(both) / len(texts), 3),
        "of_these_equal": round(sum(r == s for r, s in both) / max(len(both), 1), 3),
        "object_by_rules_only": round(sum(bool(r.object) > bool(s.object) for r, s in pairs) / len(texts), 3),
        "object_by_spacy_only": round(sum(bool(r.object) < bool(s.object) for r, s in pairs) / len(texts), 3),
    }
    print_result(result)


if __name__ == "__main__":
    main()
