"""Group rankings by prompt: merge equal answers, merge rankings of a prompt that agree, split off held-out prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from engine.base.errors import UserError
from engine.base.seeds import shuffled
from engine.text.encoding import Example, RankedExamples

Answer = tuple[int, ...]  # a response's tokens


def by_prompt(
    rankings: Sequence[RankedExamples], prompt_of: Mapping[str, Hashable], most_tokens: int
) -> tuple[dict[Hashable, list[RankedExamples]], list[str]]:
    """Return {prompt: its rankings}, and lines that report what was left out and merged.

    `prompt_of` maps a ranking's id to its prompt. Answers with equal tokens count as one. A ranking that then
    contradicts itself, or has nothing left to compare, is left out. Rankings of one prompt that share answers are
    merged into one of at most `most_tokens` where `common_order` finds an order, because prompts weigh equally in the
    loss.
    """
    groups: dict[Hashable, list[RankedExamples]] = {}
    with_equals, left_out = 0, 0
    for ranking in rankings:
        if len(set(_answers(ranking))) < len(ranking.examples):
            with_equals += 1
            if (ranking := merge([ranking])) is None:
                left_out += 1
                continue
        groups.setdefault(prompt_of[ranking.id], []).append(ranking)
    before = sum(map(len, groups.values()))
    groups = {prompt: _merge_parts(members, most_tokens) for prompt, members in groups.items()}
    after, several = sum(map(len, groups.values())), sum(len(members) > 1 for members in groups.values())
    lines = []
    if with_equals:
        lines.append(
            f"{with_equals} of {len(rankings)} rankings hold answers that are equal as tokens, which count as one; "
            f"{left_out} of them have nothing left to compare and are left out"
        )
    if after < before:
        lines.append(f"{before} rankings of {len(groups)} prompts merged into {after}")
    if several:
        lines.append(
            f"{several} prompts keep more than one ranking: those contradict each other, do not say how all answers "
            "compare, or have too many tokens together"
        )
    return groups, lines


def split(
    groups: Mapping[Hashable, Sequence[RankedExamples]], share: float, seed: int, path: object
) -> tuple[list[RankedExamples], list[RankedExamples]]:
    """Return (training, held-out) rankings: hold out a share of the prompts, each with all its rankings."""
    members = list(groups.values())
    order = shuffled(len(members), seed, "heldout")
    count = round(len(members) * share)
    if share and not 0 < count < len(members):
        raise UserError(
            f"{path} has {len(members)} prompts, too few to hold out {share:.0%}: give --eval-data FILE, raise "
            "--heldout, or give --heldout 0 to measure nothing"
        )
    heldout, trained = ([r for i in part for r in members[i]] for part in (order[:count], order[count:]))
    return trained, heldout


def merge(rankings: Sequence[RankedExamples]) -> RankedExamples | None:
    """Merge rankings of one prompt into one; None if they do not agree on one order, or compare nothing."""
    rank_of = common_order([(_answers(r), r.ranks) for r in rankings])
    if rank_of is None or len(set(rank_of.values())) < 2:
        return None
    examples: dict[Answer, Example] = {}
    for ranking in rankings:
        for answer, example in zip(_answers(ranking), ranking.examples):
            examples.setdefault(answer, example)
    return RankedExamples(rankings[0].id, tuple(examples.values()), tuple(rank_of[answer] for answer in examples))


def common_order(rankings: Sequence[tuple[Sequence[Answer], Sequence[int]]]) -> dict[Answer, int] | None:
    """Return the rank of each answer (1 is best) in the one order that follows from all rankings.

    None if they contradict each other or leave open how two answers compare: no pair is invented. Equal ranks in a
    ranking are a tie. So are two answers that no ranking compares, if all other answers compare alike to both.
    """
    level: dict[Answer, Answer] = {answer: answer for answers, _ in rankings for answer in answers}

    def find(answer: Answer) -> Answer:  # the representative of all answers that tie with this one
        while level[answer] != answer:
            answer = level[answer]
        return answer

    for answers, ranks in rankings:
        first: dict[int, Answer] = {}
        for answer, rank in zip(answers, ranks):
            level[find(answer)] = find(first.setdefault(rank, answer))
    above: dict[Answer, set[Answer]] = {find(answer): set() for answer in level}
    for answers, ranks in rankings:
        for worse, low in zip(answers, ranks):
            above[find(worse)] |= {find(b) for b, high in zip(answers, ranks) if high < low and b != worse}
    left, place, last = set(above), {}, set()
    while left:
        # Next: the answers with none above them. All must be below the last level, or a pair is not compared.
        best = {answer for answer in left if not above[answer] & left}
        if not best or any(not last <= above[answer] for answer in best):
            return None
        place |= dict.fromkeys(best, len(set(place.values())) + 1)
        left, last = left - best, best
    return {answer: place[find(answer)] for answer in level}


def _merge_parts(rankings: Sequence[RankedExamples], most_tokens: int) -> list[RankedExamples]:
    """Merge those rankings of one prompt that share answers, where that is possible."""
    parts: list[tuple[set[Answer], list[RankedExamples]]] = []
    for ranking in rankings:
        answers, members = set(_answers(ranking)), [ranking]
        for there, others in [part for part in parts if part[0] & answers]:
            answers, members = answers | there, [*others, *members]
        parts = [part for part in parts if not part[0] & answers] + [(answers, members)]
    merged = []
    for _, part in parts:
        one = merge(part) if len(part) > 1 else part[0]
        merged += part if one is None or one.num_tokens > most_tokens else [one]
    return merged


def _answers(ranking: RankedExamples) -> list[Answer]:
    return [example.tokens[example.prompt_len :] for example in ranking.examples]
