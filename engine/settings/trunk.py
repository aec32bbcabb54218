"""--trunk-dtype: how the weights of frozen layers are stored."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.settings.flags import flag

TRUNK_DTYPES = ("model", "int8", "int4")
MOST_LAYERS = 1 << 30  # more than any model has


@dataclass(frozen=True, kw_only=True)
class TrunkSettings:
    """In how many bits a stage stores its frozen layers."""

    trunk_dtype: str = flag(
        "store the linear layers that are not trained in 8 or 4 bits, or in the model's dtype", "model",
        choices=list(TRUNK_DTYPES),
    )  # fmt: skip

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers, from the lowest on, have linear layers that are not trained: all where none is."""
        return num_layers

    def quantised_layers(self, num_layers: int = MOST_LAYERS) -> int:
        """Return how many layers of a model are stored in --trunk-dtype: 0 for the model's own dtype.

        UserError if one is asked for and every layer is trained.
        """
        if self.trunk_dtype == "model":
            return 0
        if not (count := self.frozen_layers(num_layers)):
            of = "" if num_layers == MOST_LAYERS else f" of the model's {num_layers}"
            raise UserError(
                f"--trunk-dtype is {self.trunk_dtype} and all layers{of} are trained: "
                "give --top-layers a smaller number, or leave --trunk-dtype out"
            )
        return count
