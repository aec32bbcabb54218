"""Settings of SFT, reward training and DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.base.errors import UserError
from engine.settings.flags import check_above_zero, check_at_least, check_top_layers, flag, split_of
from engine.settings.heldout import HeldOutSettings, keep_best_flag
from engine.settings.trunk import TrunkSettings


@dataclass(frozen=True)
class SFTSettings(TrunkSettings, HeldOutSettings):
    """Settings of supervised fine-tuning alone."""

    _argument_group_name = "sft"
    MEASURES: ClassVar[dict[str, bool]] = {"loss": True}
    keep_best: str | None = keep_best_flag("loss")
    loss_on: str = flag("tokens in the loss", "response", choices=["response", "all"])
    top_layers: str = flag("number of top layers to train, or all", "all")
    lora_rank: int = flag(
        "train factors of this rank beside each linear layer of the trained layers instead; 0: off", 0
    )
    lora_alpha: float | None = flag("the factors' product is added times alpha / rank (default: twice the rank)", None)
    exact_match: bool = flag("at the end, also answer the held-out data greedily and count exact matches", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top_layers(self.top_layers)
        check_at_least(0, self, "lora_rank")
        check_above_zero(self, "lora_alpha", hint=" (with 0 the factors do nothing)")
        if self.lora_alpha is not None and not self.lora_rank:
            raise UserError("--lora-alpha is given without --lora-rank: give a rank, such as 16, or leave it out")
        self.quantised_layers()

    @property
    def trains_embedding(self) -> bool:
        return self.top_layers == "all" and not self.lora_rank

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers have linear layers that are not trained; low-rank factors leave all of them so."""
        split = split_of(self.top_layers, num_layers)
        return num_layers if self.lora_rank else split or 0

    @property
    def alpha(self) -> float:
        """The scale of the factors' product, times the rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True)
class RankingSettings(HeldOutSettings):
    """What reward training and DPO do with a file of rankings."""

    heldout: float = flag("fraction of the prompts held out without --eval-data; 0: no evaluation", 0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.heldout < 1:
            raise UserError(f"--heldout is {self.heldout}: give a fraction of 0 or more, below 1")

    def check_heldout_of(self, data: str | None, eval_data: str | None) -> None:
        """Raise UserError if a step is to be kept and these files and --heldout give no held-out rankings."""
        self.check_heldout(
            data is None or eval_data is not None or self.heldout > 0, "--eval-data, or --heldout above 0"
        )


@dataclass(frozen=True)
class RewardSettings(TrunkSettings, RankingSettings):
    """Settings of reward training alone."""

    _argument_group_name = "reward"
    MEASURES: ClassVar[dict[str, bool]] = {"loss": True, "accuracy": False}
    keep_best: str | None = keep_best_flag("loss, accuracy")
    trunk: str = flag(
        "shared: train only the layers that PPO trains, so that PPO scores from its own trunk; own: train more layers",
        "own",
        choices=["own", "shared"],
    )
    top_layers: int | None = flag("number of top layers to train (default: 12; with a shared trunk 4)", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "top_layers")

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers are not trained."""
        return max(0, num_layers - self.num_top_layers)

    @property
    def num_top_layers(self) -> int:
        default = 4 if self.trunk == "shared" else 12
        return default if self.top_layers is None else self.top_layers


@dataclass(frozen=True)
class DPOSettings(TrunkSettings, RankingSettings):
    """Settings of direct preference optimisation alone."""

    _argument_group_name = "dpo"
    MEASURES: ClassVar[dict[str, bool]] = {"loss": True, "accuracy": False, "likelier": False}
    keep_best: str | None = keep_best_flag("loss, accuracy, likelier")
    beta: float = flag("scale of the implicit reward, log(policy / reference): a larger one stays closer", 0.1)
    dpo_loss: str = flag(
        "pairs: the mean over a prompt's pairs of different ranks; plackett-luce: the probability of its whole ranking",
        "pairs",
        choices=["pairs", "plackett-luce"],
    )
    label_smoothing: float = flag("probability that a pair's order in the data is wrong (conservative DPO)", 0.0)
    length_normalised: bool = flag("divide implicit rewards by the number of tokens of the response", False)
    sft_coef: float = flag("weight of an added loss: -log p per token of the best response", 0.0)
    top_layers: str = flag("number of top layers to train, or all", "all")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top_layers(self.top_layers)
        check_above_zero(self, "beta", hint=" (with 0 nothing is learned)")
        check_at_least(0, self, "beta", "sft_coef")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"--label-smoothing is {self.label_smoothing}: give 0 or more, below 0.5 (a coin's flip)")
        if self.label_smoothing and self.dpo_loss != "pairs":
            raise UserError("--label-smoothing is for pairs: leave it out, or give --dpo-loss pairs")
        self.quantised_layers()

    @property
    def trains_embedding(self) -> bool:
        return self.top_layers == "all"

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers are not trained."""
        return split_of(self.top_layers, num_layers) or 0
