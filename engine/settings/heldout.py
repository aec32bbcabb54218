"""Settings of every stage that measures held-out data: how often, and which measured step is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.base.errors import UserError
from engine.settings.flags import check_at_least, flag


def keep_best_flag(measures: str) -> str | None:
    """Return the field --keep-best; `measures` lists the names that the stage knows."""
    return flag(
        f"export the weights of the measured step with the best of this measure ({measures}), not those of the last "
        "step; needs held-out data and --eval-every",
        None,
    )


@dataclass(frozen=True)
class HeldOutSettings:
    """How often a stage measures held-out data, and by which measure it keeps a step."""

    # What --keep-best may name -> whether a lower value is better.
    MEASURES: ClassVar[dict[str, bool]] = {}

    eval_every: int = flag(
        "steps (PPO: iterations) between measurements of held-out data; 0: only before the first and after the last", 0
    )
    keep_best: str | None = keep_best_flag("see the stage")

    def __post_init__(self) -> None:
        check_at_least(0, self, "eval_every")
        if self.keep_best is None:
            return
        if self.keep_best not in self.MEASURES:
            raise UserError(
                f"--keep-best is {self.keep_best!r}: this stage measures {', '.join(self.MEASURES)}, give one of them"
            )
        if not self.eval_every:
            raise UserError(
                f"--keep-best {self.keep_best} is given without --eval-every: there is one measured step to choose "
                "from, the last; give the number of steps between measurements"
            )

    def check_heldout(self, has_heldout: bool, hint: str) -> None:
        """Raise UserError if a step is to be kept and there is no held-out data; `hint` says what gives some."""
        if self.keep_best is not None and not has_heldout:
            raise UserError(f"--keep-best {self.keep_best} is given and no data is held out: give {hint}")

    def measures(self, step: int, last: int) -> bool:
        """Return whether to measure held-out data after this step."""
        return step == last or (self.eval_every > 0 and step % self.eval_every == 0)

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value of the measure of --keep-best is better than an earlier one. Equal is not better."""
        return value < than if self.MEASURES[self.keep_best] else value > than
