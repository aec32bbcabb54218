"""--trunk-dtype and --embedding-dtype: how frozen weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.settings.flags import flag

TRUNK_DTYPES = ("model", "int8", "int4")
MOST_LAYERS = 1 << 30  # more than any model has


@dataclass(frozen=True, kw_only=True)
class TrunkSettings:
    """In how many bits a stage stores its frozen layers, embedding and head."""

    trunk_dtype: str = flag(
        "store the linear layers that are not trained in 8 or 4 bits, or in the model's dtype", "model",
        choices=list(TRUNK_DTYPES),
    )  # fmt: skip
    embedding_dtype: str = flag(
        "store the embedding and the head, if not trained, in 8 or 4 bits, or in the model's dtype", "model",
        choices=list(TRUNK_DTYPES),
    )  # fmt: skip

    @property
    def trains_embedding(self) -> bool:
        """Whether the embedding and the head are trained."""
        return False

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers, from the lowest on, have linear layers that are not trained: all where none is."""
        return num_layers

    def quantised_layers(self, num_layers: int = MOST_LAYERS) -> int:
        """Return how many layers of a model are stored in --trunk-dtype: 0 for the model's own dtype.

        UserError if one is asked for and every layer is trained, or --embedding-dtype and the embedding is.
        """
        if self.embedding_dtype != "model" and self.trains_embedding:
            raise UserError(
                f"--embedding-dtype is {self.embedding_dtype} and all weights are trained, those of the embedding and "
                "the head too: give --top-layers a number, or leave --embedding-dtype out"
            )
        if self.trunk_dtype == "model":
            return 0
        if not (count := self.frozen_layers(num_layers)):
            of = "" if num_layers == MOST_LAYERS else f" of the model's {num_layers}"
            raise UserError(
                f"--trunk-dtype is {self.trunk_dtype} and all layers{of} are trained: "
                "give --top-layers a smaller number, or leave --trunk-dtype out"
            )
        return count
