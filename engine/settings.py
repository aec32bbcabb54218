"""The settings of every job, as frozen dataclasses that become flags; presets give the numbers a stage starts from."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from typing import Any

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from engine.text.templates import TEMPLATE_HELP


def flag(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field with its line in --help. Without a default the preset or the user gives the value."""
    return field(default=default, metadata={"help": help, **metadata})


def _at_least(name: str, value: float, limit: float) -> None:
    if not limit <= value < math.inf:
        raise UserError(f"--{name.replace('_', '-')} is {value}: give {limit} or more")


def _above_zero(name: str, value: float, hint: str = "") -> None:
    if not value > 0:
        raise UserError(f"--{name.replace('_', '-')} is {value}: give more than 0{hint}")


def check_room(max_new_tokens: int, max_length: int) -> None:
    """UserError unless a prompt of one token fits beside the longest response."""
    if max_new_tokens >= max_length:
        raise UserError(
            f"--max-new-tokens is {max_new_tokens}, --max-length is {max_length}: no prompt fits, "
            "lower the first or raise the second"
        )


def check_top_layers(top_layers: str) -> None:
    """UserError unless it is a number of layers or all."""
    if top_layers != "all" and not (top_layers.isdecimal() and int(top_layers) > 0):
        raise UserError(f"--top-layers is {top_layers!r}: give a number of layers, 1 or more, or all")


def split_of(top_layers: str, num_layers: int) -> int | None:
    """The first trained layer; None when all are. UserError when the model has fewer layers than asked for."""
    if top_layers == "all":
        return None
    if int(top_layers) > num_layers:
        raise UserError(f"--top-layers is {top_layers}, the model has {num_layers} layers: give fewer, or all")
    return num_layers - int(top_layers)


@dataclass(frozen=True)
class RunSettings:
    """Which run this is and where it goes."""

    _argument_group_name = "run"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str | None = flag("base model, a Hugging Face directory (default: made from nothing)", None)
    data: str | None = flag("training file, .jsonl, .jsonl.gz or .json (default: embedded)", None)
    eval_data: str | None = flag(
        "held-out file, measured before and after: SFT its loss, reward its pairs, PPO its exact matches", None
    )
    output: str | None = flag("folder of this run (default: RUNS/LANG/STAGE)", None)
    runs: str = flag("folder of all runs", "runs")
    overwrite: bool = flag("replace the run that the output folder holds", False)
    resume: bool = flag("continue the run that the output folder holds, from its newest whole checkpoint", False)
    override: bool = flag("with --resume: go on although settings, model or data have changed", False)
    save_every: int = flag("optimizer steps between checkpoints; 0: only on SIGTERM and SIGINT", 0)
    keep: int = flag("how many checkpoints are kept", 2)
    seed: int = flag("seed of every random stream", 0)
    max_steps: int | None = flag("stop after this many optimizer steps (PPO: iterations)", None)
    hang_timeout: float = flag("seconds in which no rank moves, after which the run ends and says which hangs", 1800.0)
    dtype: str = flag("auto is bfloat16 on a GPU, float32 on CPU", "auto", choices=["auto", "float32", "bfloat16"])
    monitor: str = flag("where curves go besides metrics.jsonl: tensorboard, csv, wandb, or none", "tensorboard")
    deepspeed_config: str | None = flag("ZeRO stage, offload, buckets: see ds_configs/", None)

    def __post_init__(self) -> None:
        if odd := set(self.monitors) - {"tensorboard", "csv", "wandb"}:
            raise UserError(f"--monitor: {min(odd)!r} is unknown, give some of tensorboard,csv,wandb, or none")
        if self.max_steps is not None:
            _at_least("max_steps", self.max_steps, 1)
        _at_least("save_every", self.save_every, 0)
        _at_least("keep", self.keep, 1)
        _at_least("hang_timeout", self.hang_timeout, 1)
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite are both given: the one continues a run, the other replaces it")
        if self.override and not self.resume:
            raise UserError("--override is given without --resume: it only says that changed settings may continue")

    @property
    def monitors(self) -> tuple[str, ...]:
        """The names that --monitor lists."""
        return () if self.monitor == "none" else tuple(self.monitor.split(","))


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    _argument_group_name = "optimizer"
    lr: float = flag("peak learning rate")
    schedule: str = flag("shape after the warm-up", choices=["constant", "linear", "cosine"])
    max_warmup_steps: int = flag(
        "longest warm-up where --warmup-steps is not given: then a tenth of the steps, or this"
    )
    weight_decay: float = flag("decoupled weight decay of matrices")
    beta1: float = flag("decay of the mean of gradients")
    beta2: float = flag("decay of the mean of squares")
    eps: float = flag("AdamW's epsilon", 1e-8)
    max_grad_norm: float = flag("clip the global gradient norm to this", 1.0)
    warmup_steps: int | None = flag("steps of linear warm-up, however many there are in all", None)

    def __post_init__(self) -> None:
        for name in ("lr", "max_warmup_steps", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        if self.warmup_steps is not None:
            _at_least("warmup_steps", self.warmup_steps, 0)
        _above_zero("eps", self.eps, " (a weight without a gradient is divided by it)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 or more, below 1")
        _above_zero("max_grad_norm", self.max_grad_norm, " (a large number clips nothing)")

    def warmup(self, num_steps: int) -> int:
        """Steps of warm-up in a run of so many: what was asked for, else a tenth, no more than the preset has."""
        return min(self.max_warmup_steps, num_steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class BatchSettings:
    """How much goes into a step, and how long a sequence may be."""

    _argument_group_name = "batch"
    batch_size: int = flag(
        "SFT: sequences a step; reward: prompts a step; PPO: rollouts an iteration, all ranks together"
    )
    epochs: int = flag("passes over the data")
    max_length: int = flag("longest sequence in tokens, prompt and response together")
    template: str | None = flag(TEMPLATE_HELP, None)
    truncate: str = flag(
        "a sequence that is too long: stop, cut the record's text (never the template or BOS), or leave it out; "
        "left: the start of the input, then of the instruction; right: the end of the response, for PPO of the input, "
        "then of the instruction",
        "error",
        choices=["error", "left", "right", "drop"],
    )
    bad_records: str = flag("a record that cannot be used: stop, or leave it out", "error", choices=["error", "skip"])
    tokens_per_microbatch: int = flag("tokens of one forward on one rank", 8192)
    trunk_cache: float = flag(
        "GB for the outputs of frozen layers: SFT, reward: in a file; PPO: on the device, else on the host",
        16.0,
    )

    def __post_init__(self) -> None:
        _at_least("trunk_cache", self.trunk_cache, 0)
        for name in ("batch_size", "epochs", "tokens_per_microbatch"):
            _at_least(name, getattr(self, name), 1)
        _at_least("max_length", self.max_length, 2)
        if self.tokens_per_microbatch < self.max_length:
            raise UserError(
                f"--tokens-per-microbatch is {self.tokens_per_microbatch}, --max-length is {self.max_length}: "
                "one sequence must fit, raise the first or lower the second"
            )


@dataclass(frozen=True)
class HeldOutSettings:
    """How often SFT and reward training measure what is held out."""

    eval_every: int = flag(
        "steps between measurements of the held-out data; 0: only before the first and at the end", 0
    )

    def __post_init__(self) -> None:
        _at_least("eval_every", self.eval_every, 0)

    def measures(self, step: int, last: int) -> bool:
        """Whether the held-out data is measured after so many steps."""
        return step == last or (self.eval_every > 0 and step % self.eval_every == 0)


@dataclass(frozen=True)
class SFTSettings(HeldOutSettings):
    """What only supervised fine-tuning has."""

    _argument_group_name = "sft"
    loss_on: str = flag("which tokens are learned", "response", choices=["response", "all"])
    top_layers: str = flag("how many top layers are trained, or all", "all")
    exact_match: bool = flag("also answer the held-out data greedily at the end, and count the exact answers", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top_layers(self.top_layers)


@dataclass(frozen=True)
class RewardSettings(HeldOutSettings):
    """What only reward training has."""

    _argument_group_name = "reward"
    trunk: str = flag(
        "shared: train no more layers than PPO does, so that PPO scores from the trunk it keeps; own: train more",
        "own",
        choices=["own", "shared"],
    )
    top_layers: int | None = flag("how many top layers are trained (default: 12, with a shared trunk 4)", None)
    heldout: float = flag(
        "share of the prompts held out when no --eval-data is given; 0: none, nothing is measured", 0.05
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("top_layers", self.num_top_layers, 0)
        if not 0 <= self.heldout < 1:
            raise UserError(f"--heldout is {self.heldout}: give a share of 0 or more, below 1")

    @property
    def num_top_layers(self) -> int:
        default = 4 if self.trunk == "shared" else 12
        return default if self.top_layers is None else self.top_layers


@dataclass(frozen=True)
class PPOSettings:
    """What only PPO has."""

    _argument_group_name = "ppo"
    reward: str | None = flag("reward model directory, or module:function of (prompt, response) -> float", None)
    top_layers: str = flag("how many top layers are trained; the rest is the frozen trunk; or all", "4")
    critic: str = flag(
        "shared: a value head on the policy's top; separate: a top of its own, which starts as the reward model's",
        "shared",
        choices=["shared", "separate"],
    )
    reward_offload: bool = flag("keep a reward model that has its own trunk in host memory between uses", False)
    max_new_tokens: int = flag("longest response in tokens", 256)
    minibatch_size: int = flag("rollouts an optimizer step, all ranks together", 32)
    ppo_epochs: int = flag("passes over each iteration's rollouts", 4)
    slots: int = flag("sequences generated at once on a rank", 128)
    temperature: float = flag("of sampling, and of the logits in training", 1.0)
    top_k: int = flag("sample among the k likeliest; 0 for all", 0)
    top_p: float = flag("sample among the likeliest that make up this share", 1.0)
    kl_coef: float = flag("weight of the KL penalty, its starting value if adaptive", 0.1)
    kl_controller: str = flag("fixed, or adaptive towards --kl-target", "adaptive", choices=["fixed", "adaptive"])
    kl_target: float = flag("KL in nats a response that the adaptive controller aims at", 6.0)
    kl_horizon: float = flag("rollouts over which the controller acts", 10_000.0)
    kl_estimator: str = flag("estimator of the KL", "k1", choices=["k1", "k2", "k3"])
    gamma: float = flag("discount", 1.0)
    lam: float = flag("lambda of generalised advantage estimation", 0.95)
    clip: float = flag("clip range of the ratio", 0.2)
    value_clip: float = flag("clip range of the value", 0.2)
    vf_coef: float = flag("weight of the value loss", 1.0)
    score_clip: float | None = flag(
        "scores are clipped to plus and minus this (default: 10 for a reward model's normalised ones, none for others)",
        None,
    )
    missing_eos_penalty: float = flag("taken off the score of a response that ran out of tokens", 0.0)
    eval_samples: int = flag("answers sampled to each prompt of --eval-data, before and after", 1)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "minibatch_size", "ppo_epochs", "slots", "eval_samples"):
            _at_least(name, getattr(self, name), 1)
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty"):
            _at_least(name, getattr(self, name), 0)
        check_top_layers(self.top_layers)
        if self.sampling.temperature == 0:
            raise UserError(f"--temperature is {self.temperature}: PPO must sample, give more than 0")
        for name in ("clip", "value_clip", "kl_horizon"):
            _above_zero(name, getattr(self, name))
        if self.score_clip is not None:
            _above_zero("score_clip", self.score_clip)
        if self.kl_controller == "adaptive":
            _above_zero("kl_target", self.kl_target, ", or --kl-controller fixed")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 to 1")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


# The settings of each training stage, in the order in which its launcher unpacks them.
STAGE_SETTINGS = {
    stage: (RunSettings, OptimizerSettings, BatchSettings, own)
    for stage, own in (("sft", SFTSettings), ("reward", RewardSettings), ("ppo", PPOSettings))
}


@dataclass(frozen=True)
class SampleSettings:
    """What launch/sample.py reads and writes, and with which means."""

    _argument_group_name = "sample"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str = flag("the model, a Hugging Face directory")
    data: str = flag("prompts: instruction records in .jsonl, .jsonl.gz or .json")
    output: str = flag("file to write, .jsonl: one line a prompt, in the order of the prompts")
    overwrite: bool = flag("start anew: replace the output file, and drop what an interrupted run has left", False)
    template: str | None = flag(TEMPLATE_HELP, None)
    truncate: str = flag(
        "a prompt that is too long: stop, cut the start (left) or end (right) of its input, then of its instruction, "
        "never the template or BOS, or leave it out",
        "error",
        choices=["error", "left", "right", "drop"],
    )
    slots: int = flag("sequences generated at once on a rank", 128)
    cache_tokens: int | None = flag("budget of the key/value cache (default: half of the free memory)", None)
    dtype: str = flag("auto is bfloat16 on a GPU, float32 on CPU", "auto", choices=["auto", "float32", "bfloat16"])

    def __post_init__(self) -> None:
        _at_least("slots", self.slots, 1)


@dataclass(frozen=True)
class ResponseSettings:
    """Which responses are made: how many, how long, and how their tokens are chosen."""

    _argument_group_name = "responses"
    num_responses: int = flag("responses to each prompt", 4)
    max_new_tokens: int = flag("longest response in tokens", 256)
    min_new_tokens: int = flag("no EOS before a response has this many tokens", 0)
    max_length: int = flag("longest sequence in tokens, prompt and response together", 512)
    stop: list[str] | None = flag("texts that end a response and are cut off it", None, action="extend")
    temperature: float = flag("of sampling; 0 takes the likeliest token", 1.0)
    top_k: int = flag("sample among the k likeliest; 0 for all", 0)
    top_p: float = flag("sample among the likeliest that make up this share", 1.0)
    min_p: float = flag("sample among those with at least this share of the likeliest token's", 0.0)
    repetition_penalty: float = flag("weaken tokens that prompt or response hold already; 1 for none", 1.0)
    seed: int = flag("seed of every random stream", 0)

    def __post_init__(self) -> None:
        for name in ("num_responses", "max_new_tokens"):
            _at_least(name, getattr(self, name), 1)
        _at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min-new-tokens is {self.min_new_tokens}, --max-new-tokens is {self.max_new_tokens}: "
                "lower the first or raise the second"
            )
        check_room(self.max_new_tokens, self.max_length)
        if "" in (self.stop or ()):
            raise UserError("--stop holds an empty text: every response would end before it began, leave it out")
        if self.sampling.temperature == 0 and self.num_responses > 1:
            raise UserError(
                f"--temperature is 0, so the {self.num_responses} responses of a prompt would be equal: "
                "raise it, or give --num-responses 1"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
