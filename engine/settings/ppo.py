"""Settings of PPO, RLOO and GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.base.errors import UserError
from engine.base.mixture import Source, parse_sources
from engine.generation.sampling import Sampling
from engine.settings.flags import check_above_zero, check_at_least, check_top_layers, flag, split_of
from engine.settings.heldout import HeldOutSettings, keep_best_flag
from engine.settings.rewards import Reward, parse_rewards
from engine.settings.trunk import TrunkSettings

# Advantage estimators (engine/objectives/advantages.py), with the fewest responses to a prompt that they compare.
FEWEST_SAMPLES = {"gae": 1, "rloo": 2, "grpo": 2}


@dataclass(frozen=True)
class PPOSettings(TrunkSettings, HeldOutSettings):
    """Settings of PPO alone."""

    _argument_group_name = "ppo"
    MEASURES: ClassVar[dict[str, bool]] = {"score": False, "exact_match": False}
    keep_best: str | None = keep_best_flag("score, exact_match")
    reward: list[str] | None = flag(
        "reward model directory, or module:function of (prompt, response) -> float; several are added up, each may end "
        "with :WEIGHT (a number, default 1)",
        None,
        action="extend",
    )
    top_layers: str = flag("number of top layers to train, or all; the other layers are the frozen trunk", "4")
    advantage: str = flag(
        "gae: with a critic (PPO); rloo, grpo: from the other responses to the same prompt, without one; or "
        "module:function of (rollouts, settings), without one",
        "gae",
    )
    samples_per_prompt: int = flag("responses to each prompt; --batch-size counts responses, a multiple of this", 1)
    advantage_scale: str = flag(
        "grpo: divide by the deviation of the prompt's rewards (std), or not (none)", "std", choices=["std", "none"]
    )
    credit: str = flag(
        "rloo: all tokens of a response get its advantage (sequence), or each without the rewards before it (token)",
        "sequence",
        choices=["sequence", "token"],
    )
    loss_mean: str = flag(
        "mean of the loss: over the tokens of a step (token), over the responses of their means (sequence), or over "
        "the responses of their sums divided by --max-new-tokens (constant)",
        "token",
        choices=["token", "sequence", "constant"],
    )
    critic: str = flag(
        "gae: shared, a value head on the policy's top layers; separate, its own top layers, copied from the first "
        "reward model",
        "shared",
        choices=["shared", "separate"],
    )
    critic_warmup: int = flag("gae: train only the critic in this many first iterations", 0)
    critic_lr: float | None = flag("gae: peak learning rate of the critic (default: --lr)", None)
    reward_offload: bool = flag("between uses, move a reward model with its own trunk to host memory", False)
    park_trunk: bool = flag("during updates, keep the frozen layers in host memory, and free the cache", False)
    max_new_tokens: int = flag("longest response in tokens", 256)
    minibatch_size: int = flag("rollouts per optimizer step, summed over all ranks", 32)
    ppo_epochs: int = flag("passes over the rollouts of each iteration", 4)
    slots: int = flag("sequences generated at once per rank", 128)
    cache_tokens: int | None = flag(
        "key/value cache size in tokens, the same in all rollouts (default: what the slots can fill, at most half of "
        "the memory that is free before the first rollout)",
        None,
    )
    temperature: float = flag("temperature of sampling and of the logits in training", 1.0)
    top_k: int = flag("sample among the k likeliest tokens; 0 for all", 0)
    top_p: float = flag("sample among the likeliest tokens whose probabilities add up to this", 1.0)
    kl_coef: float = flag("weight of the KL penalty; its initial value if adaptive", 0.1)
    kl_controller: str = flag(
        "keep the KL weight fixed or adapt it to --kl-target", "adaptive", choices=["fixed", "adaptive"]
    )
    kl_target: float = flag("target of the adaptive controller: KL in nats per response", 6.0)
    kl_horizon: float = flag("time scale of the adaptive controller, in rollouts", 10_000.0)
    kl_in: str = flag(
        "where the KL penalty is: in the reward of each action, or in the loss, with a gradient of its own",
        "reward",
        choices=["reward", "loss"],
    )
    kl_estimator: str | None = flag(
        "KL estimator, k1, k2 or k3 (default: k1 in the reward, k3 in the loss)", None, choices=["k1", "k2", "k3"]
    )
    target_kl: float | None = flag(
        "leave out the rest of an iteration's updates once the policy has moved this far from the one that sampled: "
        "mean over a minibatch's tokens of half the squared log ratio, in nats (default: no limit)",
        None,
    )
    stop_kl: float | None = flag(
        "end the run after the iteration whose KL to the reference (objective/kl, nats per response) is above this "
        "(default: no limit)",
        None,
    )
    gamma: float = flag("discount; gae only", 1.0)
    lam: float = flag("lambda of generalised advantage estimation; gae only", 0.95)
    clip: float = flag("clip range of the probability ratio", 0.2)
    value_clip: float = flag("clip range of the value", 0.2)
    vf_coef: float = flag("weight of the value loss", 1.0)
    score_norm: str = flag(
        "rollouts: normalise scores by the mean and deviation of those of the first iteration", "none",
        choices=["none", "rollouts"],
    )  # fmt: skip
    score_clip: float | None = flag(
        "clip scores to plus and minus this (default: 10 for normalised scores, else no clipping)", None
    )
    missing_eos_penalty: float = flag("subtracted from the score of a response that does not end with EOS", 0.0)
    ptx_data: list[str] | None = flag(
        "pretraining text whose next-token loss is added: .txt, or records with a field text; of several, FILE:WEIGHT "
        "gives the shares",
        None,
        action="extend",
    )
    ptx_coef: float | None = flag("weight of that loss, a mean over tokens (default: 1)", None)
    ptx_tokens: int | None = flag("tokens of that text in each optimizer step, of all ranks (default: 1024)", None)
    eval_samples: int = flag("answers sampled per prompt of --eval-data, each time it is measured", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.reward, str):  # as a run records one reward
            object.__setattr__(self, "reward", [self.reward])
        parse_rewards(self.reward or ())
        check_at_least(
            1, self, "max_new_tokens", "minibatch_size", "ppo_epochs", "slots", "cache_tokens", "eval_samples"
        )
        check_at_least(0, self, "kl_coef", "vf_coef", "missing_eos_penalty")
        check_top_layers(self.top_layers)
        self.quantised_layers()
        if self.sampling.temperature == 0:
            raise UserError(f"--temperature is {self.temperature}: PPO must sample, give more than 0")
        check_above_zero(self, "clip", "value_clip", "kl_horizon", "score_clip")
        check_above_zero(self, "target_kl", "stop_kl", hint=" nats, or leave it out")
        if self.kl_controller == "adaptive":
            check_above_zero(self, "kl_target", hint=", or --kl-controller fixed")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 to 1")
        self._check_advantage()
        self._check_park()
        self._check_text()
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise UserError(
                "--kl-estimator is k1 with --kl-in loss: its gradient is 0 on average and pulls nowhere, give k2 or k3"
            )

    @property
    def trains_embedding(self) -> bool:
        return self.top_layers == "all"

    def frozen_layers(self, num_layers: int) -> int:
        """Return how many layers are not trained."""
        return split_of(self.top_layers, num_layers) or 0

    def _check_park(self) -> None:
        if self.park_trunk and self.top_layers == "all":
            raise UserError("--park-trunk is given with --top-layers all, which leaves no layer frozen: leave one out")

    def _check_advantage(self) -> None:
        check_at_least(1, self, "samples_per_prompt")
        check_at_least(0, self, "critic_warmup", "critic_lr")
        name = self.advantage
        if name not in FEWEST_SAMPLES and ":" not in name:
            raise UserError(f"--advantage is {name!r}: give {', '.join(FEWEST_SAMPLES)} or module:function")
        fewest = FEWEST_SAMPLES.get(name, 1)
        if self.samples_per_prompt < fewest:
            raise UserError(
                f"--samples-per-prompt is {self.samples_per_prompt}: --advantage {name} compares the responses to a "
                f"prompt, give {fewest} or more"
            )
        for flag_name, value, neutral in (
            ("critic", self.critic, "shared"), ("critic-warmup", self.critic_warmup, 0),
            ("critic-lr", self.critic_lr, None), ("gamma", self.gamma, 1.0),
        ):  # fmt: skip
            if not self.has_critic and value != neutral:
                raise UserError(f"--{flag_name} is {value}: --advantage {name} has no critic, leave it out")
        for flag_name, value, neutral, only in (
            ("advantage-scale", self.advantage_scale, "std", "grpo"), ("credit", self.credit, "sequence", "rloo"),
        ):  # fmt: skip
            if value != neutral and name in FEWEST_SAMPLES and name != only:
                raise UserError(f"--{flag_name} is {value}: it is for --advantage {only}, not {name}, leave it out")

    def _check_text(self) -> None:
        self.text_sources  # noqa: B018  raises for a bad weight
        for name in ("ptx_coef", "ptx_tokens"):
            if getattr(self, name) is not None and not self.ptx_data:
                raise UserError(
                    f"--{name.replace('_', '-')} is given without --ptx-data: name the text, or leave it out"
                )
        check_at_least(1, self, "ptx_tokens")
        check_at_least(0, self, "ptx_coef")
        check_above_zero(self, "ptx_coef", hint=", or leave out --ptx-data")

    @property
    def text_sources(self) -> tuple[Source, ...]:
        """The files of --ptx-data with their weights."""
        return parse_sources(self.ptx_data or (), "--ptx-data")

    @property
    def rewards(self) -> list[Reward]:
        """What --reward names; empty without it."""
        return parse_rewards(self.reward or ())

    @property
    def has_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def estimator(self) -> str:
        """The KL estimator in use."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)
