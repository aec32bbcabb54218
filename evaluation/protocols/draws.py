"""Draws: the order of the questions and the shots before each of them, as each protocol does it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from engine.base.errors import UserError
from evaluation.data.items import Item
from evaluation.data.prompt_words import ENGLISH
from evaluation.tasks import Form


@dataclass(frozen=True)
class Pool:
    """Where shots come from: the items of one part of the data."""

    part: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Plan:
    """What a draw needs to know.

    limit   questions of each run, the first in the protocol's own order; a run is the task, or a subject by by_subject
    shared  every question has the same shots (strict alone knows this)
    """

    task: str
    items: Sequence[Item]
    pool: Pool
    form: Form
    shots: int
    limit: int | None
    seed: int
    shared: bool = False

    def runs(self) -> Iterator[tuple[Sequence[Item], Sequence[Item]]]:
        """The questions and the pool of each subject, in the order they first occur; or all of them at once."""
        if not self.form.by_subject:
            yield self.items, self.pool.items
            return
        for subject in dict.fromkeys(item.subject for item in self.items):
            yield (
                [item for item in self.items if item.subject == subject],
                [item for item in self.pool.items if item.subject == subject],
            )


Shots = tuple[Item, ...]
Draw = Callable[[Plan], Iterator[tuple[Item, Shots]]]


def after_shuffle(plan: Plan) -> Iterator[tuple[Item, Shots]]:
    """lm-eval's draws of 2023: the questions are shuffled, and the same generator goes on to draw their shots.

    Equal questions are told by what the protocol makes of them, not by their ids.
    """
    made: dict[int, tuple] = {}

    def content(item: Item) -> tuple:
        form = plan.form
        if id(item) not in made:
            made[id(item)] = (form.question(item, ENGLISH), form.options(item), form.truth(item))
        return made[id(item)]

    for items, pool in plan.runs():
        rng = Random(plan.seed)
        order = list(items)
        rng.shuffle(order)
        for item in order[: plan.limit]:
            if plan.shots == 0:
                yield item, ()
            elif plan.form.in_order:
                yield item, tuple(pool[: plan.shots])
            elif plan.pool.part in plan.form.spare:
                drawn = _sample(rng, pool, plan.shots + 1, plan)
                yield item, tuple(shot for shot in drawn if content(shot) != content(item))[: plan.shots]
            else:
                yield item, tuple(_sample(rng, pool, plan.shots, plan))


def in_file_order(plan: Plan) -> Iterator[tuple[Item, Shots]]:
    """lm-eval 0.4.13's draws on one GPU: the questions in file order, one generator for all their shots."""
    for items, pool in plan.runs():
        rng = Random(plan.seed)
        if plan.form.in_order and len(pool) < plan.shots:
            raise _too_few(plan, len(pool))
        for item in items[: plan.limit]:
            if plan.shots == 0:
                yield item, ()
            elif plan.form.in_order:
                yield item, tuple(pool[: plan.shots])
            elif plan.pool.part in plan.form.spare:
                drawn = _sample(rng, pool, plan.shots + 1, plan)
                kept = [shot for shot in drawn if shot.record != item.record][: plan.shots]
                if len(kept) < plan.shots:
                    # Equal records in the pool: both copies were drawn and left out. lm-eval then draws anew.
                    kept = _sample(rng, [shot for shot in pool if shot.record != item.record], plan.shots, plan)
                yield item, tuple(kept)
            else:
                yield item, tuple(_sample(rng, pool, plan.shots, plan))


def by_document(plan: Plan) -> Iterator[tuple[Item, Shots]]:
    """The strict draws: the shots of a question follow from the seed, the task and the ids of question and shots alone.

    Each shot has a hash with the question's id, and the smallest are taken (rendezvous hashing): neither the order of
    the files, nor --limit, nor the language changes them, as long as the questions are there. A shot that asks the same
    question is passed over. With in_order, the first of the subject by id. A subject with fewer has fewer.
    """
    pools: dict[str | None, list[Item]] = {}
    for _, pool in plan.runs():
        for shot in pool:
            pools.setdefault(shot.subject if plan.form.by_subject else None, []).append(shot)
    if plan.shots and max(map(len, pools.values()), default=0) < plan.shots:
        raise _too_few(plan, max(map(len, pools.values()), default=0))
    if plan.form.in_order:
        # By length first: "x/dev/2" stands before "x/dev/10".
        pools = {subject: sorted(pool, key=lambda shot: (len(shot.id), shot.id)) for subject, pool in pools.items()}
    keys = {
        subject: np.array([_key(plan, shot.id) for shot in pool], dtype=np.uint64) for subject, pool in pools.items()
    }
    for item in plan.items[: plan.limit]:
        subject = item.subject if plan.form.by_subject else None
        pool = pools.get(subject, [])
        if plan.shots == 0 or not pool:
            yield item, ()
            continue
        order: Sequence[int] = range(len(pool))
        if not plan.form.in_order:
            own = _key(plan, "" if plan.shared else f"document {item.id}")
            order = np.argsort(_mix(keys[subject] ^ np.uint64(own)), kind="stable").tolist()
        chosen = (pool[at] for at in order if pool[at].question != item.question)
        yield item, tuple(shot for shot, _ in zip(chosen, range(plan.shots)))


def _sample(rng: Random, pool: Sequence[Item], count: int, plan: Plan) -> list[Item]:
    if count > len(pool):
        raise _too_few(plan, len(pool), count)
    return rng.sample(pool, count)


def _too_few(plan: Plan, there: int, wanted: int | None = None) -> UserError:
    wanted = plan.shots if wanted is None else wanted
    kind = "of a subject " if plan.form.by_subject else ""
    return UserError(
        f"task {plan.task}: {wanted} shots {kind}are to be drawn from {plan.pool.part}, which has {there}: "
        f"lower --shots or add records"
    )


def _key(plan: Plan, name: str) -> int:
    digest = hashlib.blake2b(f"{plan.seed}/{plan.task}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on each value, modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
