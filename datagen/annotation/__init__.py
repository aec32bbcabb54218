"""People rank: read answers to prompts, keep the judgements of several annotators, write rankings and agreement."""
