"""Draws: order the questions and draw the shots of each, by the rule of each protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from engine.base.errors import UserError
from evaluation.data.items import Item
from evaluation.data.prompt_words import ENGLISH
from evaluation.tasks import Form


@dataclass(frozen=True)
class Pool:
    """The items that shots are drawn from, and the name of their part of the data."""

    part: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Plan:
    """The arguments of a draw.

    items   the questions
    shots   number of shots per question
    limit   number of questions per run, the first in the protocol's order; a run is the task, or one subject if the
            form has by_subject
    shared  give every question the same shots (strict only)
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
        """Yield (questions, pool) of each run: of each subject in order of first occurrence, or of the whole task."""
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
    """Draw as lm-eval did in 2023: shuffle the questions, then draw their shots with the same generator.

    Two questions are equal if the protocol formats them equally; their ids do not count.
    """
    formatted: dict[int, tuple] = {}

    def content(item: Item) -> tuple:
        form = plan.form
        if id(item) not in formatted:
            formatted[id(item)] = (form.question(item, ENGLISH), form.options(item), form.truth(item))
        return formatted[id(item)]

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
    """Draw as lm-eval 0.4.13 does on one GPU: questions in file order, one generator for all their shots."""
    for items, pool in plan.runs():
        rng = Random(plan.seed)
        if plan.form.in_order and len(pool) < plan.shots + (plan.pool.part in plan.form.spare and plan.shots > 0):
            raise _too_few(plan, len(pool))
        for item in items[: plan.limit]:
            if plan.shots == 0:
                yield item, ()
            elif plan.form.in_order and plan.pool.part in plan.form.spare:
                yield item, tuple([shot for shot in pool if shot.record != item.record][: plan.shots])
            elif plan.form.in_order:
                yield item, tuple(pool[: plan.shots])
            elif plan.pool.part in plan.form.spare:
                drawn = _sample(rng, pool, plan.shots + 1, plan)
                kept = [shot for shot in drawn if shot.record != item.record][: plan.shots]
                if len(kept) < plan.shots:
                    # The draw had two copies of the question's record and lost both. lm-eval then draws again.
                    kept = _sample(rng, [shot for shot in pool if shot.record != item.record], plan.shots, plan)
                yield item, tuple(kept)
            else:
                yield item, tuple(_sample(rng, pool, plan.shots, plan))


def by_document(plan: Plan) -> Iterator[tuple[Item, Shots]]:
    """Draw as strict does: a question's shots depend only on the seed, the task and the ids of question and shots.

    Hash each item of the pool with the question's id and take the smallest hashes (rendezvous hashing). File order,
    --limit and the language do not change the shots, as long as the same items exist. Skip items with the same question
    text. With in_order, take the first items of the subject by id. A subject with too few items gives fewer shots.
    """
    pools: dict[str | None, list[Item]] = {}
    for _, pool in plan.runs():
        for shot in pool:
            pools.setdefault(shot.subject if plan.form.by_subject else None, []).append(shot)
    if plan.shots and max(map(len, pools.values()), default=0) < plan.shots:
        raise _too_few(plan, max(map(len, pools.values()), default=0))
    if plan.form.in_order:
        # By length first, so that "x/dev/2" comes before "x/dev/10".
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
            item_key = _key(plan, "" if plan.shared else f"document {item.id}")
            order = np.argsort(_mix(keys[subject] ^ np.uint64(item_key)), kind="stable").tolist()
        others = (pool[i] for i in order if pool[i].question != item.question)
        yield item, tuple(islice(others, plan.shots))


def _sample(rng: Random, pool: Sequence[Item], count: int, plan: Plan) -> list[Item]:
    if count > len(pool):
        raise _too_few(plan, len(pool), count)
    return rng.sample(pool, count)


def _too_few(plan: Plan, available: int, needed: int | None = None) -> UserError:
    needed = plan.shots if needed is None else needed
    scope = "for each subject " if plan.form.by_subject else ""
    return UserError(
        f"task {plan.task} needs {needed} shots {scope}from {plan.pool.part}, which has {available}: "
        f"lower --shots or add records"
    )


def _key(plan: Plan, name: str) -> int:
    """Return a 64-bit hash of the seed, the task and the name."""
    digest = hashlib.blake2b(f"{plan.seed}/{plan.task}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014) to each uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
