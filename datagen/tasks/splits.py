"""Split the prompts of the embedded tasks into training and held-out ones, and draw tasks from a split.

A hash of the prompt's text decides the split, whatever the size and seed: a held-out prompt is never trained on. A
finite kind (the seven days, ...) has too few prompts for one pool per split: its training splits share one pool, its
held-out splits another. Every other kind has one pool per split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from random import Random

from datagen.kits import Kit
from datagen.tasks.kinds import Task, all_tasks, draw_task, is_finite

TRAINING_SPLITS = ("sft", "rl", "ranking")

# Percent of the prompts of each kind that is not finite.
_SHARES = {"sft": 40, "rl": 20, "ranking": 20, "heldout": 7, "ranking_heldout": 6, "benchmarks": 7}
_HELDOUT_PERCENT_OF_FINITE = 20
_ROUNDS = 8  # how often a training split may use each prompt
_PATIENCE_DRAWS = 2_000  # draws in a row without a new prompt before a pool counts as used up


def draw_split(kit: Kit, split: str, count: int, kinds: Iterable[str], stream: str) -> list[Task]:
    """Return `count` tasks of the split in random order, equally many of each kind.

    A training split uses each prompt up to eight times, any other split once. A kind that has run out leaves its share
    to the others, because training on one prompt a hundred times only memorizes it. Returns fewer than `count` tasks if
    all kinds have run out. Equal `stream` names give equal tasks.
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
    """Return the kind's training or held-out tasks. The lowest hashes are held out, so even a small kind has some."""
    tasks = sorted(all_tasks(kit, kind), key=_hash)
    num_heldout = round(len(tasks) * _HELDOUT_PERCENT_OF_FINITE / 100)
    return tasks[num_heldout:] if split in TRAINING_SPLITS else tasks[:num_heldout]


def _new_tasks(kit: Kit, kind: str, split: str, rng: Random) -> Iterator[Task]:
    """Yield tasks with new prompts of this split until nearly all of its prompts have been drawn."""
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
    """Return a 64-bit hash of the prompt's text."""
    text = f"{task.instruction}\n{task.input}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
