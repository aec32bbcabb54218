"""Save and resume a run exactly: every N optimizer steps, and on SIGTERM and SIGINT."""

from __future__ import annotations

import hashlib
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.interrupt import Interrupt
from engine.distributed.world import World
from engine.models.config_rules import computed_from
from engine.models.quantised import stored_weights
from engine.objectives.experience import Experience
from engine.run.checkpoint_files import (
    BEST,
    COLUMNS,
    ROLLOUT,
    TRAINED,
    Checkpoint,
    check_room,
    link,
    name_of,
    newest_whole,
    write,
    written,
)
from engine.run.folder import Run, differences
from engine.settings import RunSettings
from engine.training.zero import ZeroStep

FAILED = 1000  # larger than any signal number: the last checkpoint could not be written


class _Signalled(BaseException):
    """A signal has come during long work that need not be finished."""


@dataclass(frozen=True)
class Saved:
    """Where a run resumes: optimizer steps done, the trainer's own state, this rank's rollouts, columns of the data.

    columns: as in `Checkpoints`; None if there are none, or if they belong to other data (--override).
    """

    step: int
    trainer: dict[str, Any]
    experience: Experience | None
    columns: dict[str, Tensor] | None


class Checkpoints:
    """Saves and restores a trainer's weights, its optimizer (through `zero`) and its own state.

    Tensors are copied to the host; a thread of the first rank writes them while training continues. No random state is
    saved: every random stream is derived from the seed and the place of its use. Use it as a context around the
    training loop: there, SIGTERM and SIGINT wait for the end of the step, then the run is saved and the process exits
    with 128 + signal (a second SIGINT exits at once). `finishing` is the context for the work after the loop. All ranks
    make each call together.

    columns: tensors that are computed once before the first step and go into every checkpoint, equal on all ranks.
    best: the file of best.py; while it exists, a link to it goes into every checkpoint, and `restore` brings it back.
    """

    def __init__(
        self,
        zero: ZeroStep,
        run: Run,
        settings: RunSettings,
        world: World,
        console: Console,
        identity: Mapping[str, Any],
    ):
        self.zero, self.run, self.settings, self.world, self.console = zero, run, settings, world, console
        self.identity = {**identity, "dtype": str(next(iter(zero.trained.values())).dtype).removeprefix("torch.")}
        self.folder = run.path / "checkpoints"
        self.columns: Mapping[str, Tensor] = {}
        self.best = run.path / BEST
        self._saved_step: int | None = None
        self._last: tuple[int, Any] = (0, {})  # the newest step that can be saved, and the trainer's state
        self._interrupt = Interrupt("the run is saved at the next step, then it stops" if world.is_first else "")
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def restore(self, share: Callable[[int, Mapping[str, Any]], Sequence[int]] | None = None) -> Saved | None:
        """Restore the newest whole checkpoint if --resume is given; None when the run starts from the beginning.

        Prints the checkpoints that were rejected. `share(rank, trainer state)` gives the rollouts of the iteration that
        a rank takes. UserError if checkpoints exist but none is whole, or if settings, model or data differ.
        """
        if not self.settings.resume:
            return None
        found, rejected, mistake = None, [], None
        if self.world.is_first:
            found, rejected = newest_whole(self.folder, self.run.why_cut)
            mistake = self._why_not(found, rejected)
        state, mistake = self.world.gather((found and found.state, mistake))[0]
        if mistake:
            raise UserError(mistake)
        for line in rejected:
            self.console.say(f"rejected {line}")
        if state is None:
            self.console.say(f"{self.folder} holds no checkpoint: the run starts from the beginning")
            self.run.cut_back({}, 0.0)
            self.together(lambda: self._bring_back_best(None))
            return None
        self._say_what_differs(state)
        with found.open(TRAINED) if found else nullcontext() as handle:
            shapes = {k: tuple(handle.get_slice(k).get_shape()) for k in handle.keys()} if found else None  # noqa: SIM118
            self.zero.put_back(self.world.gather(shapes)[0], handle.get_tensor if found else lambda name: None)
        self.run.cut_back(state["files"], state["seconds"])
        self.together(lambda: self._bring_back_best(found))
        self._saved_step = state["step"]
        self._last = state["step"], state["trainer"]
        same_data = state["identity"].get("tokens") == self.identity.get("tokens")
        columns = self.world.gather(found and same_data and found.tensors(COLUMNS))[0] or None
        return Saved(state["step"], state["trainer"], self._rollouts_of_rank(found, state, share), columns)

    def after_step(
        self,
        step: int,
        trainer: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        experience: Experience | None = None,
        last: bool = False,
    ) -> None:
        """Save if `step` is due, is the `last`, or a signal has come; after a signal, exit.

        `trainer`, or what it returns when called, is saved as JSON; `experience` are this rank's rollouts.
        """
        every, self._last = self.settings.save_every, (step, trainer)
        code = self.world.max(FAILED if self._has_failed() else self._interrupt.signal)
        if code == FAILED:
            self._wait()
        if step == 0:
            if code:
                self.console.say(f"{signal.Signals(code).name}: no step was taken yet, there is nothing to save")
                raise SystemExit(128 + code)
            return
        if code or (every and (last or step % every == 0)):
            self._save(step, trainer, experience)
        if code:
            self._wait()
            self.console.say(
                f"{signal.Signals(code).name}: saved {self.folder / name_of(step)}, --resume continues there"
            )
            raise SystemExit(128 + code)

    def save(self, step: int, trainer: Any, experience: Experience | None = None) -> Path | None:
        """Save now (arguments as in `after_step`), wait for the disk, return the path; None before the first step."""
        if step:
            self._save(step, trainer, experience)
            self._wait()
        return self.folder / name_of(step) if step else None

    def at(self, step: int, trainer: Callable[[], Mapping[str, Any]]) -> None:
        """Say what `part` saves after a signal from here on: this step, and what `trainer` returns then."""
        self._last = (step, trainer)

    def wait(self) -> None:
        """Wait until the current checkpoint is on disk, with its link to the best weights. All ranks call it."""
        self._wait()

    @contextmanager
    def abort_on_signal(self, step: int, trainer: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Context for long work that changes no saved state. After a signal on any rank, save and exit when it ends.

        The work ends early where it calls `raise_if_signalled`.
        """
        with suppress(_Signalled):
            yield
        self.after_step(step, trainer)

    def raise_if_signalled(self) -> None:
        """Leave the body of `abort_on_signal` or `part` if this rank has received a signal."""
        if self._interrupt.signal:
            raise _Signalled

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Context for the work after the last step, which --resume repeats. Signals wait for the end of a `part`."""
        with self._interrupt:
            yield
            self.after_step(*self._last)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Context for a part of `finishing`, as `abort_on_signal`."""
        with self.abort_on_signal(*self._last):
            yield

    def __enter__(self) -> Checkpoints:
        if self.settings.save_every:
            self.together(self._check_room)
        self._interrupt.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.after_step(*self._last)  # a signal may have come after the last step
                self._wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self._interrupt.__exit__(kind, error, at)

    def _save(self, step: int, trainer: Any, experience: Experience | None) -> None:
        if step == self._saved_step:
            return
        self._wait()
        state = {"trainer": dict(trainer() if callable(trainer) else trainer), "step": step}
        files = {TRAINED: self.zero.keep()} | ({COLUMNS: self.columns} if self.columns else {})
        if self.world.max(experience is not None):
            parts = self.world.collect(experience.tensors())
            if self.world.is_first:
                whole = Experience.concat([Experience.of_tensors(part, "cpu") for part in parts])
                files[ROLLOUT] = whole.tensors()
        self._saved_step = step
        if self.world.is_first:
            state |= {"ranks": self.world.size, "zero_stage": self.zero.stage, "identity": self.identity}
            state |= self.run.position()
            self._pool = self._pool or ThreadPoolExecutor(1, "checkpoint")
            self._writing = self._pool.submit(
                write, self.folder, step, state, files, self.settings.keep, self.run.cut_files,
                self.best if self.best.is_file() else None,
            )  # fmt: skip

    def _bring_back_best(self, found: Checkpoint | None) -> None:
        """Replace the best weights by those of a checkpoint: the ones on disk may be from a later step."""
        for file in (self.best, *self.best.parent.glob(f".{self.best.name}.*.tmp")):  # a kill leaves those
            file.unlink(missing_ok=True)
        if found is not None and (found.path / BEST).is_file():
            link(found.path / BEST, self.best)

    def _has_failed(self) -> bool:
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def _wait(self) -> None:
        """Wait until the current checkpoint is on disk. Raises its error on every rank."""

        def finish() -> None:
            if self._writing is not None:
                self._writing.result()

        self.together(finish)

    def together(self, action: Callable[[], None]) -> None:
        """Call `action` on the first rank; raise its UserError on all ranks."""
        mistake = None
        if self.world.is_first:
            try:
                action()
            except UserError as error:
                mistake = str(error)
        if mistake := self.world.gather(mistake)[0]:
            raise UserError(mistake)

    def _check_room(self) -> None:
        # The new checkpoint is written before the oldest is removed.
        missing = max(1, self.settings.keep + 1 - len(written(self.folder)))
        check_room(self.run.path, missing * self.zero.kept_bytes, f"--save-every with --keep {self.settings.keep}")

    def _why_not(self, found: Checkpoint | None, rejected: Sequence[str]) -> str | None:
        if found is None:
            if not rejected:
                return None
            return f"no checkpoint in {self.folder} is whole ({'; '.join(rejected)}): --overwrite starts the run again"
        before = {**found.state["settings"], **found.state["identity"]}
        changed = differences(before, {**self.run.settings, **self.identity})
        if not changed or self.settings.override:
            return None
        return (
            f"{found.path} was made with other settings ({'; '.join(changed)}): give the same, "
            "or --override to go on with these"
        )

    def _say_what_differs(self, state: Mapping[str, Any]) -> None:
        now = {**self.run.settings, **self.identity}
        changed = differences({**state["settings"], **state["identity"]}, now)
        changed += differences(state["versions"], self.run.provenance["versions"])
        if changed:
            self.console.say(f"continuing with a difference: {'; '.join(changed)}")
        there, here = (state["ranks"], state["zero_stage"]), (self.world.size, self.zero.stage)
        if there != here:
            self.console.say(
                f"continuing {there[0]} ranks of ZeRO-{there[1]} on {here[0]} of ZeRO-{here[1]}: sums are taken in "
                "another order from here on, so the numbers may differ in their last digits"
            )
        self.console.say(f"continuing after optimizer step {state['step']:,}, from {self.folder}")

    def _rollouts_of_rank(
        self, found: Checkpoint | None, state: Mapping[str, Any], share: Callable[..., Sequence[int]] | None
    ) -> Experience | None:
        """Return this rank's share of the saved rollouts, on its device."""
        parts: list[Mapping[str, Tensor] | None] = [None] * self.world.size

        def deal() -> None:
            if (tensors := found.tensors(ROLLOUT)) is None:
                return
            whole = Experience.of_tensors(tensors, "cpu")
            place = {int(i): s for s, i in enumerate(whole.rollout_S)}
            shares = [share(rank, state["trainer"]) for rank in range(self.world.size)]
            if place.keys() != {i for ids in shares for i in ids}:
                raise UserError(
                    f"{found.path} holds {len(place)} rollouts that are in use, the iteration now has "
                    f"{sum(map(len, shares))}: give the --batch-size and the ranks it was made with"
                )
            parts[:] = [whole.select([place[i] for i in ids]).tensors() for ids in shares]

        self.together(deal)
        mine = self.world.deal(parts)
        return None if mine is None else Experience.of_tensors(mine, self.world.device)


def fingerprint(model: nn.Module, *sequences: Iterable[Sequence[int]]) -> dict[str, str]:
    """Digests that tell whether a resumed run has the same model and data: a sample of each weight, and all tokens.

    The weights' digest includes the config fields that change what the model computes.
    """
    weights, data = hashlib.sha256(repr(computed_from(model.config)).encode()), hashlib.sha256()
    for name, weight in stored_weights(model):
        some = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
        weights.update(f"{name} {tuple(weight.shape)}".encode() + some.float().cpu().numpy().tobytes())
    for sequence in (s for part in sequences for s in part):
        data.update(array("q", [len(sequence), *sequence]).tobytes())
    return {"weights": weights.hexdigest()[:16], "tokens": data.hexdigest()[:16]}
