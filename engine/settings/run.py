"""Settings that all training stages have: the run, the optimizer, the batch."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError
from engine.base.mixture import Source, parse_sources
from engine.settings.flags import DTYPE_HELP, DTYPES, check_above_zero, check_at_least, flag
from engine.text.templates import TEMPLATE_HELP


@dataclass(frozen=True)
class RunSettings:
    """Input and output of a run, and how it starts, stops and resumes."""

    _argument_group_name = "run"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)")
    model: str | None = flag("base model, a Hugging Face directory (default: a new one with random weights)", None)
    data: list[str] | None = flag(
        "training file, .jsonl, .jsonl.gz or .json (default: embedded); of several, FILE:WEIGHT gives the shares",
        None,
        action="extend",
    )
    eval_data: str | None = flag(
        "held-out file, measured before, after and every --eval-every: SFT loss, pair accuracy (reward, DPO), PPO's "
        "score and exact matches",
        None,
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
    dtype: str = flag(DTYPE_HELP, "auto", choices=[*DTYPES])
    deterministic: bool = flag("on a GPU: the same bits in every run, with slower sums in places", False)
    monitor: str = flag("where curves go besides metrics.jsonl: tensorboard, csv, wandb, or none", "tensorboard")
    deepspeed_config: str | None = flag("ZeRO stage, offload, buckets: see ds_configs/", None)

    def __post_init__(self) -> None:
        if isinstance(self.data, str):  # as a run of one file records it
            object.__setattr__(self, "data", [self.data])
        self.sources  # noqa: B018  raises for a bad weight
        if odd := set(self.monitors) - {"tensorboard", "csv", "wandb"}:
            raise UserError(f"--monitor: {min(odd)!r} is unknown, give some of tensorboard,csv,wandb, or none")
        check_at_least(1, self, "max_steps", "keep", "hang_timeout")
        check_at_least(0, self, "save_every")
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite are both given: one continues a run, the other replaces it")
        if self.override and not self.resume:
            raise UserError("--override is given without --resume: it only lets a run continue with changed settings")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files of --data with their weights; none for the embedded data."""
        return parse_sources(self.data or ())

    @property
    def monitors(self) -> tuple[str, ...]:
        """The names in --monitor."""
        return () if self.monitor == "none" else tuple(self.monitor.split(","))


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    _argument_group_name = "optimizer"
    lr: float = flag("peak learning rate")
    schedule: str = flag(
        "shape after the warm-up; wsd stays at the peak and falls at the end",
        choices=["constant", "linear", "cosine", "wsd"],
    )
    max_warmup_steps: int = flag(
        "without --warmup-steps, warm up for a tenth of the steps (PPO: iterations), up to this"
    )
    weight_decay: float = flag("decoupled weight decay of matrices")
    beta1: float = flag("decay of the mean of gradients")
    beta2: float = flag("decay of the mean of squares")
    eps: float = flag("AdamW's epsilon", 1e-8)
    max_grad_norm: float = flag("clip the global gradient norm to this", 1.0)
    warmup_steps: int | None = flag("steps of linear warm-up (PPO: iterations), whatever the length of the run", None)
    decay_steps: int | None = flag("wsd: steps at the end in which the rate falls (default: a fifth of the run)", None)

    def __post_init__(self) -> None:
        check_at_least(0, self, "lr", "max_warmup_steps", "weight_decay", "warmup_steps")
        check_at_least(1, self, "decay_steps")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise UserError(f"--decay-steps is {self.decay_steps} and --schedule {self.schedule}: give --schedule wsd")
        check_above_zero(self, "eps", hint=" (a weight without a gradient is divided by it)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 0 or more, below 1")
        check_above_zero(self, "max_grad_norm", hint=" (a large number clips nothing)")

    def warmup(self, num_steps: int) -> int:
        """Return the warm-up steps of a run: warmup_steps, or a tenth of num_steps up to max_warmup_steps."""
        return min(self.max_warmup_steps, num_steps // 10) if self.warmup_steps is None else self.warmup_steps

    def decay(self, num_steps: int) -> int:
        """Return the steps in which the schedule wsd falls: decay_steps, or a fifth of num_steps; 0 for others."""
        if self.schedule != "wsd":
            return 0
        return min(num_steps, max(1, num_steps // 5) if self.decay_steps is None else self.decay_steps)


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
    recompute: bool = flag(
        "keep only the input of each trained layer, and run the layer again in its backward: less memory, equal bits",
        False,
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
