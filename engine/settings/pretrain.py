"""Settings of continued pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.base.errors import UserError
from engine.settings.flags import check_above_zero, check_at_least, check_top_layers, flag
from engine.settings.heldout import HeldOutSettings, keep_best_flag
from engine.settings.run import RunSettings


@dataclass(frozen=True)
class TextRunSettings(RunSettings):
    """The settings of a run that reads text, and measures several held-out files."""

    _argument_group_name = "run"
    data: list[str] | None = flag(
        "text: .txt (blank lines between documents), .jsonl or .json with a field text, .gz of the first two; of "
        "several, FILE:WEIGHT gives the shares of the sequences",
        None,
        action="extend",
    )
    eval_data: list[str] | None = flag(
        "held-out text, such as --data, each file measured under its own name before, after and every --eval-every",
        None,
        action="extend",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eval_data, str):
            object.__setattr__(self, "eval_data", [self.eval_data])


@dataclass(frozen=True)
class PretrainSettings(HeldOutSettings):
    """Settings of continued pretraining alone."""

    _argument_group_name = "pretrain"
    MEASURES: ClassVar[dict[str, bool]] = {"bits_per_byte": True, "bits_per_byte_mean": True}
    keep_best: str | None = keep_best_flag("bits_per_byte, of the first file; bits_per_byte_mean, over the files")
    top_layers: str = flag("number of top layers to train, or all", "all")
    bottom_layers: int | None = flag(
        "with a number of top layers: also train this many of the lowest layers, the embeddings and the head", None
    )
    embedding_lr: float | None = flag(
        "peak learning rate of the embeddings and an untied head (default: that of all weights)", None
    )
    eval_tokens: int = flag("measure whole documents from the start of each held-out file, up to this", 1_000_000)
    token_cache: str | None = flag(
        "folder of the tokenised files, which later runs use again (default: RUNS/LANG/tokens)", None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top_layers(self.top_layers)
        check_at_least(0, self, "bottom_layers")
        check_above_zero(self, "embedding_lr")
        check_at_least(1, self, "eval_tokens")
        if self.bottom_layers is not None and self.top_layers == "all":
            raise UserError(
                f"--bottom-layers is {self.bottom_layers} and --top-layers all trains them anyway: "
                "give a number of top layers, or leave it out"
            )
        if self.embedding_lr is not None and self.bottom_layers is None and self.top_layers != "all":
            raise UserError(
                f"--embedding-lr is {self.embedding_lr} and --top-layers {self.top_layers} keeps the embeddings: "
                "give --bottom-layers (0 or more), or --top-layers all"
            )

    def middle(self, num_layers: int) -> range:
        """Return the layers that are not trained although the embeddings are: none without --bottom-layers.

        UserError if the model has too few layers.
        """
        if self.bottom_layers is None:
            return range(0)
        top = int(self.top_layers)
        if self.bottom_layers + top >= num_layers:
            raise UserError(
                f"--bottom-layers {self.bottom_layers} and --top-layers {top} are all of the model's {num_layers} "
                "layers: give fewer, or --top-layers all alone"
            )
        return range(self.bottom_layers, num_layers - top)
