"""--keep-best: keep the trained weights of the best measured step on disk, and export them instead of the last.

A single file, best.safetensors in the run's folder, holds the trained weights as the model reads them (no masters, no
moments, no frozen layer, no critic), with the step in its header. A checkpoint holds a link to the file that was there
when it was saved, so a run that resumes has the best step as of its checkpoint, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.base.atomic import whole_path
from engine.base.errors import UserError
from engine.cli.console import Console
from engine.run.kept import in_words
from engine.settings import HeldOutSettings
from engine.training.checkpoint import Checkpoints

NOTE = "note"
NOT_EXPORTED = ("value.", "critic.")  # of PPO's module


class Best:
    """The best measured step so far; does nothing without --keep-best. All ranks make each call together.

    kept   None before the first measurement, then a mapping that goes into checkpoints: `step` and its `value` of the
           measure, `results`, all that was measured then, `measured`, how many steps were, and `newest`, the last value
    """

    def __init__(self, settings: HeldOutSettings, checkpoints: Checkpoints, console: Console):
        self.settings, self.checkpoints, self.console = settings, checkpoints, console
        self.zero, self.world, self.file = checkpoints.zero, checkpoints.world, checkpoints.best
        self.kept: dict[str, Any] | None = None

    @property
    def name(self) -> str | None:
        """The measure of --keep-best."""
        return self.settings.keep_best

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the file: {} before the first measurement."""
        return {} if self.kept is None else {"kept": {"measure": self.name, **self.kept}}

    def restore(self, trainer: Mapping[str, Any]) -> None:
        """Continue with what `state` returned. A step kept by another measure (--override) is forgotten."""
        kept = dict(trainer.get("kept") or {})
        self.kept = kept if kept and kept.pop("measure") == self.name else None

    def offer(self, step: int, value: float, results: Mapping[str, Any]) -> bool:
        """Keep the weights of this step if its value is the best so far. Returns whether it is."""
        if self.name is None:
            return False
        value = self.world.gather(value)[0]  # ranks must agree to the last bit
        before = self.kept
        measured = 1 if before is None else before["measured"] + 1
        if before is not None and not self.settings.is_better(value, before["value"]):
            self.kept = {**before, "measured": measured, "newest": value}
            return False
        self.checkpoints.wait()  # a checkpoint that is being written links to the file
        weights = self.zero.weights(NOT_EXPORTED)
        self.kept = {"step": step, "value": value, "results": dict(results), "measured": measured, "newest": value}
        self.checkpoints.together(lambda: self._write(weights, step))
        return True

    def settle(self, last: int, before: float | None, unit: str = "step") -> dict[str, Any]:
        """Put the kept weights into the module at the end of a run of `last` steps, and say which they are.

        Returns what result.json takes over: the measurements of the kept step, and `kept`; {} if nothing is kept.
        `before` is the value before training; a `unit` is a step or an iteration.
        """
        if self.kept is None:
            return {}
        if self.kept["step"] != last:
            self._put_in(self.kept["step"])
        names = {unit: "step", "value": "value", "measured": "measured", "last_value": "newest"}
        kept = {"measure": self.name, **{name: self.kept[own] for name, own in names.items()}, f"last_{unit}": last}
        if self.kept["step"] == last:
            kept.pop("last_value")
        self.console.say(in_words(kept))
        if before is not None and not self.settings.is_better(kept["value"], before):
            self.console.say(f"warning: the model before training is as good on held-out data, {before:.4g}")
        return {**self.kept["results"], "kept": kept}

    def _write(self, weights: Mapping[str, Any], step: int) -> None:
        try:
            with whole_path(self.file) as path:
                save_file(dict(weights), path, {NOTE: json.dumps({"step": step, "measure": self.name})})
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(
                f"{self.file} cannot be written ({why}): fix that (disk space, permissions), then --resume continues "
                "from the last checkpoint"
            ) from error

    def _put_in(self, step: int) -> None:
        found: dict[str, Any] = {}

        def look() -> None:
            try:
                handle = safe_open(self.file, framework="pt", device="cpu")
                note = json.loads((handle.metadata() or {})[NOTE])
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                why = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise UserError(
                    f"{self.file} cannot be read ({why}), it held the weights of the best step, {step}: --resume "
                    "brings it back from the newest checkpoint"
                ) from error
            if note["step"] != step:
                raise UserError(f"{self.file} holds step {note['step']}, not the best one, {step}: remove the run")
            found["handle"] = handle

        self.checkpoints.together(look)
        handle = found.get("handle")
        names = self.world.gather(list(handle.keys()) if handle else None)[0]
        self.zero.show(names, handle.get_tensor if handle else lambda name: None)
