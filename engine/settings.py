"""Settings of training and sampling, as frozen dataclasses that become flags; presets supply the numbers of a stage.

The file is one table: a field per flag with its help and default, and each flag's limits below its group. Commands
with flags of their own (evaluate, serve, chat, plan, convert, the benchmarks) define them beside their code with `flag`
and the checks.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from typing import Any

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from engine.text.templates import TEMPLATE_HELP


def flag(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """Return a dataclass field with its --help text. Without a default, a preset or the user must give the value."""
    return field(default=default, metadata={"help": help, **metadata})


def check_at_least(limit: float, settings: Any, *names: str) -> None:
    """Raise UserError unless each named setting is finite and at least `limit`, or None (not given)."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not limit <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give {limit} or more")


def check_above_zero(settings: Any, *names: str, hint: str = "") -> None:
    """Raise UserError unless each named setting is above 0, or None (not given)."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give more than 0{hint}")


def check_room(max_new_tokens: int, max_length: int) -> None:
    """Raise UserError unless a one-token prompt and the longest response fit into max_length."""
    if max_new_tokens >= max_length:
        raise UserError(
            f"--max-new-tokens is {max_new_tokens}, --max-length is {max_length}: no prompt fits, "
            "lower the first or raise the second"
        )


def check_top_layers(top_layers: str) -> None:
    """Raise UserError unless top_layers is a positive number or "all"."""
    if top_layers != "all" and not (top_layers.isdecimal() and int(top_layers) > 0):
        raise UserError(f"--top-layers is {top_layers!r}: give a number of layers, 1 or more, or all")


def split_of(top_layers: str, num_layers: int) -> int | None:
    """Return the index of the first trained layer, or None if all are trained.

    UserError if the model has fewer layers than top_layers.
    """
    if top_layers == "all":
        return None
    if int(top_layers) > num_layers:
        raise UserError(f"--top-layers is {top_layers}, the model has {num_layers} layers: give fewer, or all")
    return num_layers - int(top_layers)


@dataclass(frozen=True)
class RunSettings:
    """Input and output of a run, and how it starts, stops and resumes."""

    _argument_group_name = "run"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str | None = flag("base model, a Hugging Face directory (default: a new one with random weights)", None)
    data: str | None = flag("training file, .jsonl, .jsonl.gz or .json (default: embedded)", None)
    eval_data: str | None = flag(
        "held-out file, measured before and after: SFT loss, pair accuracy (reward, DPO), PPO exact matches", None
    )
    output: str | None = flag("folder of this run (default: RUNS/LANG/STAGE)", None)
    runs: str = flag("folder of all runs", "runs")
    overwrite: bool = flag("replace the run in the output folder", False)
    resume: bool = flag("continue the run in the output folder from its newest complete checkpoint", False)
    override: bool = flag("with --resume: continue even if settings, model or data have changed", False)
    save_every: int = flag("optimizer steps between checkpoints; 0: save only on SIGTERM and SIGINT", 0)
    keep: int = flag("number of checkpoints to keep", 2)
    seed: int = flag("seed of every random stream", 0)
    max_steps: int | None = flag("stop after this many optimizer steps (PPO: iterations)", None)
    hang_timeout: float = flag("end the run and name the hanging rank after this many seconds without progress", 1800.0)
    dtype: str = flag("auto is bfloat16 on a GPU, float32 on CPU", "auto", choices=["auto", "float32", "bfloat16"])
    monitor: str = flag("where curves go besides metrics.jsonl: tensorboard, csv, wandb, or none", "tensorboard")
    deepspeed_config: str | None = flag("ZeRO stage, offload, buckets: see ds_configs/", None)

    def __post_init__(self) -> None:
        if odd := set(self.monitors) - {"tensorboard", "csv", "wandb"}:
            raise UserError(f"--monitor: {min(odd)!r} is unknown, give some of tensorboard,csv,wandb, or none")
        check_at_least(1, self, "max_steps", "keep", "hang_timeout")
        check_at_least(0, self, "save_every")
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite are both given: one continues a run, the other replaces it")
        if self.override and not self.resume:
            raise UserError("--override is given without --resume: it only lets a run continue with changed settings")

    @property
    def monitors(self) -> tuple[str, ...]:
        """The names in --monitor."""
        return () if self.monitor == "none" else tuple(self.monitor.split(","))


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    _argument_group_name = "optimizer"
    lr: float = flag("peak learning rate")
    schedule: str = flag("shape after the warm-up", choices=["constant", "linear", "cosine"])
    max_warmup_steps: int = flag(
        "without --warmup-steps, warm up for a tenth of the steps (PPO: iterations), up to this"
    )
    weight_decay: float = flag("decoupled weight decay of matrices")
    beta1: float = flag("decay of the mean of gradients")
    beta2: float = flag("decay of the mean of squares")
    eps: float = flag("AdamW's epsilon", 1e-8)
    max_grad_norm: float = flag("clip the global gradient norm to this", 1.0)
    warmup_steps: int | None = flag("steps of linear warm-up (PPO: iterations), whatever the length of the run", None)

    def __post_init__(self) -> None:
        check_at_least(0, self, "lr", "max_warmup_steps", "weight_decay", "warmup_steps")
        check_above_zero(self, "eps", hint=" (a weight without a gradient is divided by it)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 or more, below 1")
        check_above_zero(self, "max_grad_norm", hint=" (a large number clips nothing)")

    def warmup(self, num_steps: int) -> int:
        """Return the warm-up steps of a run: warmup_steps, or a tenth of num_steps up to max_warmup_steps."""
        return min(self.max_warmup_steps, num_steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class BatchSettings:
    """Size of a step, and length of a sequence."""

    _argument_group_name = "batch"
    batch_size: int = flag(
        "SFT: sequences per step; reward, DPO: prompts per step; PPO: rollouts per iteration; summed over all ranks"
    )
    epochs: int = flag("passes over the data")
    max_length: int = flag("longest sequence in tokens, prompt and response together")
    template: str | None = flag(TEMPLATE_HELP, None)
    truncate: str = flag(
        "what to do with a sequence that is too long: stop (error), skip it (drop), or cut text of the record, never "
        "the template or BOS; left cuts the start of the input, then of the instruction; right cuts the end of the "
        "response (PPO: of the input, then of the instruction)",
        "error",
        choices=["error", "left", "right", "drop"],
    )
    bad_records: str = flag("what to do with an invalid record", "error", choices=["error", "skip"])
    tokens_per_microbatch: int = flag("tokens per forward on one rank", 8192)
    trunk_cache: float = flag(
        "GB to cache outputs of frozen layers; SFT, reward, DPO: in a file; PPO: on the device, the rest on the host",
        16.0,
    )

    def __post_init__(self) -> None:
        check_at_least(0, self, "trunk_cache")
        check_at_least(1, self, "batch_size", "epochs", "tokens_per_microbatch")
        check_at_least(2, self, "max_length")
        if self.tokens_per_microbatch < self.max_length:
            raise UserError(
                f"--tokens-per-microbatch is {self.tokens_per_microbatch}, --max-length is {self.max_length}: "
                "one sequence must fit, raise the first or lower the second"
            )


@dataclass(frozen=True)
class HeldOutSettings:
    """How often SFT, reward training and DPO evaluate on held-out data."""

    eval_every: int = flag(
        "steps between evaluations on held-out data; 0: only before the first step and after the last", 0
    )

    def __post_init__(self) -> None:
        check_at_least(0, self, "eval_every")

    def measures(self, step: int, last: int) -> bool:
        """Return whether to evaluate on held-out data after this step."""
        return step == last or (self.eval_every > 0 and step % self.eval_every == 0)


@dataclass(frozen=True)
class SFTSettings(HeldOutSettings):
    """Settings of supervised fine-tuning alone."""

    _argument_group_name = "sft"
    loss_on: str = flag("tokens in the loss", "response", choices=["response", "all"])
    top_layers: str = flag("number of top layers to train, or all", "all")
    exact_match: bool = flag("at the end, also answer the held-out data greedily and count exact matches", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top_layers(self.top_layers)


@dataclass(frozen=True)
class RankingSettings(HeldOutSettings):
    """What reward training and DPO do with a file of rankings."""

    heldout: float = flag("fraction of the prompts held out without --eval-data; 0: no evaluation", 0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.heldout < 1:
            raise UserError(f"--heldout is {self.heldout}: give a fraction of 0 or more, below 1")


@dataclass(frozen=True)
class RewardSettings(RankingSettings):
    """Settings of reward training alone."""

    _argument_group_name = "reward"
    trunk: str = flag(
        "shared: train only the layers that PPO trains, so that PPO scores from its own trunk; own: train more layers",
        "own",
        choices=["own", "shared"],
    )
    top_layers: int | None = flag("number of top layers to train (default: 12; with a shared trunk 4)", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "top_layers")

    @property
    def num_top_layers(self) -> int:
        default = 4 if self.trunk == "shared" else 12
        return default if self.top_layers is None else self.top_layers


# Advantage estimators (engine/objectives/advantages.py), with the fewest responses to a prompt that they compare.
FEWEST_SAMPLES = {"gae": 1, "rloo": 2, "grpo": 2}


@dataclass(frozen=True)
class DPOSettings(RankingSettings):
    """Settings of direct preference optimisation alone."""

    _argument_group_name = "dpo"
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


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO alone."""

    _argument_group_name = "ppo"
    reward: str | None = flag("reward model directory, or module:function of (prompt, response) -> float", None)
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
        "gae: shared, a value head on the policy's top layers; separate, its own top layers, copied from the reward "
        "model",
        "shared",
        choices=["shared", "separate"],
    )
    critic_warmup: int = flag("gae: train only the critic in this many first iterations", 0)
    critic_lr: float | None = flag("gae: peak learning rate of the critic (default: --lr)", None)
    reward_offload: bool = flag("between uses, move a reward model with its own trunk to host memory", False)
    max_new_tokens: int = flag("longest response in tokens", 256)
    minibatch_size: int = flag("rollouts per optimizer step, summed over all ranks", 32)
    ppo_epochs: int = flag("passes over the rollouts of each iteration", 4)
    slots: int = flag("sequences generated at once per rank", 128)
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
    eval_samples: int = flag("answers sampled per prompt of --eval-data, before and after PPO", 1)

    def __post_init__(self) -> None:
        check_at_least(1, self, "max_new_tokens", "minibatch_size", "ppo_epochs", "slots", "eval_samples")
        check_at_least(0, self, "kl_coef", "vf_coef", "missing_eos_penalty")
        check_top_layers(self.top_layers)
        if self.sampling.temperature == 0:
            raise UserError(f"--temperature is {self.temperature}: PPO must sample, give more than 0")
        check_above_zero(self, "clip", "value_clip", "kl_horizon", "score_clip")
        if self.kl_controller == "adaptive":
            check_above_zero(self, "kl_target", hint=", or --kl-controller fixed")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 to 1")
        self._check_advantage()
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise UserError(
                "--kl-estimator is k1 with --kl-in loss: its gradient is 0 on average and pulls nowhere, give k2 or k3"
            )

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


# Settings classes of each training stage, in the order in which its launcher unpacks them.
STAGE_SETTINGS = {
    stage: (RunSettings, OptimizerSettings, BatchSettings, own)
    for stage, own in (("sft", SFTSettings), ("reward", RewardSettings), ("dpo", DPOSettings), ("ppo", PPOSettings))
}


@dataclass(frozen=True)
class SampleSettings:
    """Input, output and resources of launch/sample.py."""

    _argument_group_name = "sample"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str = flag("the model, a Hugging Face directory")
    data: str = flag("prompts: instruction records in .jsonl, .jsonl.gz or .json")
    output: str = flag("file to write, .jsonl: one line per prompt, in the order of the prompts")
    overwrite: bool = flag("start again: replace the output file and delete the responses of an interrupted run", False)
    template: str | None = flag(TEMPLATE_HELP, None)
    truncate: str = flag(
        "what to do with a prompt that is too long: stop (error), skip it (drop), or cut the start (left) or the "
        "end (right) of its input, then of its instruction, never the template or BOS",
        "error",
        choices=["error", "left", "right", "drop"],
    )
    slots: int = flag("sequences generated at once per rank", 128)
    cache_tokens: int | None = flag("key/value cache size in tokens (default: half of the free memory)", None)
    dtype: str = flag("auto is bfloat16 on a GPU, float32 on CPU", "auto", choices=["auto", "float32", "bfloat16"])

    def __post_init__(self) -> None:
        check_at_least(1, self, "slots")


@dataclass(frozen=True)
class ResponseSettings:
    """Number, length and sampling of responses."""

    _argument_group_name = "responses"
    num_responses: int = flag("responses per prompt", 4)
    max_new_tokens: int = flag("longest response in tokens", 256)
    min_new_tokens: int = flag("mask EOS until a response has this many tokens", 0)
    max_length: int = flag("longest sequence in tokens, prompt and response together", 512)
    stop: list[str] | None = flag("texts that end a response; the response is cut before them", None, action="extend")
    temperature: float = flag("sampling temperature; 0 always takes the likeliest token", 1.0)
    top_k: int = flag("sample among the k likeliest tokens; 0 for all", 0)
    top_p: float = flag("sample among the likeliest tokens whose probabilities add up to this", 1.0)
    min_p: float = flag("sample among tokens with at least this fraction of the highest probability", 0.0)
    repetition_penalty: float = flag("weaken tokens already in prompt or response; 1 for none", 1.0)
    seed: int = flag("seed of every random stream", 0)

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_responses", "max_new_tokens")
        check_at_least(0, self, "min_new_tokens")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min-new-tokens is {self.min_new_tokens}, --max-new-tokens is {self.max_new_tokens}: "
                "lower the first or raise the second"
            )
        check_room(self.max_new_tokens, self.max_length)
        if "" in (self.stop or ()):
            raise UserError("--stop contains an empty text, which would end every response at once: leave it out")
        if self.sampling.temperature == 0 and self.num_responses > 1:
            raise UserError(
                f"--temperature is 0, so the {self.num_responses} responses of a prompt would be equal: "
                "raise it, or give --num-responses 1"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
