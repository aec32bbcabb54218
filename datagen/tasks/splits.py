"""Splits of the embedded tasks: which prompts are trained on and which are held out, and drawing from each split.

A hash of the prompt's text decides, so the answer depends on neither size nor seed: what is held out once is never
trained on. A finite kind (the seven days, ...) is too small to divide further: the training splits share one pool of
its prompts, the held-out splits another. Every other kind has a pool of its own for each split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from random import Random

from datagen.kits import Kit
from datagen.tasks.kinds import Task, all_tasks, draw_task, is_finite

TRAINING_SPLITS = ("sft", "rl", "ranking")

# Per cent of the prompts of a kind that is not finite.
_SHARES = {"sft": 40, "rl": 20, "ranking": 20, "heldout": 7, "ranking_heldout": 6, "benchmarks": 7}
_HELDOUT_PERCENT_OF_FINITE = 20
_ROUNDS = 8  # of a training split's prompts of one kind
_PATIENCE_DRAWS = 2_000  # without a prompt that is new, before a split's share counts as used up


def draw_split(kit: Kit, split: str, count: int, kinds: Iterable[str], stream: str) -> list[Task]:
    """`count` tasks of the split in random order, as many of each kind as of any other.

    In a training split a kind that runs out starts again, a few rounds; elsewhere no prompt occurs twice. A kind that
    has run out leaves its share to the others: a prompt seen a hundred times is learned by heart, not understood. There
    are fewer than `count` when all have run out. Equal streams give equal tasks.
    """
    sources = [_tasks_of_kind(kit, kind, split, Random(f"{kit.code}/{stream}/{kind}")) for kind in kinds]
    tasks: list[Task] = []
    while sources and len(tasks) < count:
        for source in tuple(sources):
            task = next(source, None)
            if task is None:
                sources.remove(source)
            else:
                tasks.append(task)
    del tasks[count:]
    Random(f"{kit.code}/{stream}").shuffle(tasks)
    return tasks


def _tasks_of_kind(kit: Kit, kind: str, split: str, rng: Random) -> Iterator[Task]:
    if is_finite(kind):
        tasks = _finite_pool(kit, kind, split)
        rng.shuffle(tasks)
        yield from tasks
    else:
        tasks = []
        for task in _new_tasks(kit, kind, split, rng):
            tasks.append(task)
            yield task
    if split in TRAINING_SPLITS:
        for _ in range(_ROUNDS - 1):
            rng.shuffle(tasks)
            yield from tasks


def _finite_pool(kit: Kit, kind: str, split: str) -> list[Task]:
    """The prompts with the lowest hashes are held out, so that every finite kind has some however small it is."""
    tasks = sorted(all_tasks(kit, kind), key=_hash)
    num_heldout = round(len(tasks) * _HELDOUT_PERCENT_OF_FINITE / 100)
    return tasks[num_heldout:] if split in TRAINING_SPLITS else tasks[:num_heldout]


def _new_tasks(kit: Kit, kind: str, split: str, rng: Random) -> Iterator[Task]:
    """Tasks with prompts of this split, each once, until (nearly) all of its share were drawn."""
    seen: set[tuple[str, str]] = set()
    patience = _PATIENCE_DRAWS
    while patience:
        task = draw_task(kit, kind, rng)
        prompt = task.instruction, task.input
        if prompt in seen or _split_of(task) != split:
            patience -= 1
            continue
        seen.add(prompt)
        patience = _PATIENCE_DRAWS
        yield task


def _split_of(task: Task) -> str:
    percentile = _hash(task) * 100 >> 64
    for split, share in _SHARES.items():
        percentile -= share
        if percentile < 0:
            return split
    raise AssertionError("the shares must add up to 100")


def _hash(task: Task) -> int:
    """64 bits of the prompt's text."""
    text = f"{task.instruction}\n{task.input}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
