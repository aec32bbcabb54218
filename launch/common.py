"""Setup shared by the jobs: settings, ranks, run folder, checked inputs, and the embedded default."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datagen.embedded import make_embedded, write_embedded
from engine.base.errors import UserError
from engine.base.languages import Language, get_language
from engine.base.mixture import Mixture
from engine.cli import parse
from engine.cli.console import Console
from engine.cli.parse import Parsed, build_settings
from engine.device import be_deterministic, why_unseen
from engine.distributed.world import World, start_world
from engine.init_model import init_model
from engine.models import load_model, load_score_weight
from engine.models.hf import check_replaceable, empty_model, load_config
from engine.objectives.schedule import rate_line, warmup_warning
from engine.planning.disk import disk_line, disk_parts
from engine.presets import presets
from engine.run.folder import Run
from engine.run.monitors import take_monitors
from engine.run.template_choice import Choice, choose_template
from engine.settings import STAGE_SETTINGS, BatchSettings, OptimizerSettings, RunSettings, TrunkSettings
from engine.text.chats import with_chat_template
from engine.text.templates import Template
from engine.text.tokenizer import check_vocab, load_tokenizer
from engine.training.context import Context
from engine.training.ds_config import read_ds_config
from engine.training.export import try_export

LARGEST_ON_CPU = 1_000_000_000  # weights, where a GPU is there that PyTorch does not see
DEMO_RECORDS = 48_000  # instructions; two thirds as many rankings, and as many PPO prompts
# Settings that a run passes to the stages it depends on.
SHARED_SETTINGS = (
    "lang", "runs", "seed", "dtype", "deterministic", "save_every", "keep", "hang_timeout", "monitor",
    "deepspeed_config", "resume",
)  # fmt: skip
DEMO_MODEL = {"family": "bloom", "layers": 6, "hidden": 192, "heads": 6, "vocab_size": 1024, "max_positions": 512}


@dataclass(frozen=True)
class Job:
    """A stage about to run: ranks, folder, console and settings."""

    world: World
    run: Run
    console: Console
    language: Language
    ds_config: dict[str, Any]
    dtype: torch.dtype
    settings: Parsed

    def header(self, title: str, rows: dict[str, object], steps: int) -> None:
        """Print `rows` with the learning rate, ranks and results folder, and warn about a long warm-up."""
        zero = self.ds_config.get("zero_optimization", {}).get("stage", 0)
        ranks = f"{self.world.size} x {self.world.device.type}, {str(self.dtype).removeprefix('torch.')}, ZeRO-{zero}"
        rows |= {"rate": rate_line(self.settings[1], steps), "ranks": ranks, "results": self.run.path}
        self.console.header(title, rows)
        if line := warmup_warning(self.settings[1], steps):
            self.console.say(line)

    def disk(self, count: int, batch: BatchSettings, model: Any, trained: int, **sizes: int) -> str:
        """Return the header line with the disk space the run may need. UserError if that much is not free.

        `count` is the number of training records, `trained` of trained weights; `sizes` as in engine/planning/disk.py.
        """
        run: RunSettings = self.settings[0]
        steps = -(-count // batch.batch_size) * batch.epochs
        steps = min(steps, run.max_steps or steps)
        keep_best = self.settings[3].keep_best is not None
        parts = disk_parts(
            self.run.stage, model, trained, steps, run.save_every, run.keep, keep_best=keep_best, **sizes
        )  # fmt: skip
        return disk_line(parts, self.run.path)

    def choose_template(self, given: str | None, model_dir: str | Path, tokenizer: Any) -> Choice:
        """Return the prompt template of this run, and record it in the run."""
        choice = choose_template(given, model_dir, tokenizer)
        self.run.template = choice.template.record()
        return choice

    @property
    def curves(self) -> str:
        """Where the curves of the run are: TensorBoard's command, or the file that always has the numbers."""
        if "tensorboard" in self.settings[0].monitors:
            return f"tensorboard --logdir {self.run.path / 'tb'}"
        return str(self.run.path / "metrics.jsonl")

    @property
    def card_settings(self) -> dict[str, Any]:
        """The settings for the model card: with lowered lengths and the chosen template."""
        return {**self.run.settings, **self.run.lowered, "template": (self.run.template or {}).get("name")}

    def try_export(
        self, model: Any, inputs: Mapping[str, Any], tokenizer: Any, template: Template | None, eos_ids: Sequence[int]
    ) -> Any:
        """Return the tokenizer to export. UserError if exporting at the end would fail: see export.py.

        Without a template, the tokenizer stays as it is.
        """
        exported = tokenizer if template is None else with_chat_template(tokenizer, template)
        if not self.run.settings["overwrite"]:  # --overwrite removes an old model
            check_replaceable(self.run.model_dir)
        try_export(model, self.run.stage, self.card_settings, inputs, exported, eos_ids)
        return exported

    def context(
        self, run: RunSettings, optimizer: OptimizerSettings, batch: BatchSettings, stage: Any, mixture: Mixture
    ) -> Context:
        """What a trainer runs with: this job's ranks, folder and console, the settings given, and the data's files."""
        return Context(run, optimizer, batch, stage, self.world, self.run, self.console, self.ds_config, mixture)

    def load(self, path: str | Path, trunk: TrunkSettings | None = None) -> tuple[Any, Any]:
        """Return (model on this rank's device, tokenizer). UserError unless they fit each other; as load_checked."""
        return load_checked(path, self.dtype, self.world.device, trunk)


def choose_dtype(name: str, device: torch.device, say: Callable[[str], None]) -> torch.dtype:
    """Return the dtype of --dtype, as DTYPE_HELP says. Say if the device has no instructions for it, or is no GPU."""
    if device.type == "cpu" and (reason := why_unseen()):
        say(f"warning: this machine has a GPU, but the run is on the CPU. {reason}")
    if name == "auto" and device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        say("this GPU has no bfloat16: --dtype float16, with a loss scale")
        return torch.float16
    if name == "auto":
        return torch.float32
    slow = name == "bfloat16" and not multiplies_bfloat16() or name == "float16"
    if device.type == "cpu" and slow:
        say(f"warning: this CPU has no instructions for {name}, it can take 100 times as long: give --dtype float32")
    return getattr(torch, name)


def multiplies_bfloat16() -> bool:
    """Return whether PyTorch multiplies bfloat16 matrices with this CPU's vector instructions (AVX-512, AMX, SVE)."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def base_config(path: str | Path) -> Any:
    """Return the config of --model. UserError for a run's folder: the model is in its subfolder model/."""
    if Path(path, "model", "config.json").is_file():
        raise UserError(f"--model {path} is a run's folder: give the model in it, {Path(path, 'model')}")
    return load_config(path)


def load_checked(
    path: str | Path, dtype: torch.dtype, device: torch.device, trunk: TrunkSettings | None = None
) -> tuple[Any, Any]:
    """Return (language model, tokenizer) of a directory, with frozen layers stored as `trunk` says.

    UserError unless they fit each other.
    """
    path = Path(path)
    config = base_config(path)
    quantised = trunk.quantised_layers(config.num_hidden_layers) if trunk else 0
    tokenizer = load_tokenizer(path)
    check_vocab(tokenizer, config.vocab_size)
    check_size(config, path, device)
    if load_score_weight(path) is not None:
        raise UserError(f"--model {path} is a reward model (it has a score head): give a language model")
    stored = (trunk.trunk_dtype, quantised, trunk.embedding_dtype) if trunk else ()
    return load_model(path, dtype, device, *stored), tokenizer


def check_size(config: Any, path: Path, device: torch.device) -> None:
    """UserError for a large model on the CPU of a machine with a GPU: the run would take weeks and say nothing."""
    if device.type == "cpu" and (reason := why_unseen()):
        count = sum(p.numel() for p in empty_model(config, str(path)).parameters())
        if count > LARGEST_ON_CPU:
            raise UserError(
                f"{path} has {count / 1e9:.1f} billion weights and would run on the CPU, and this machine has a GPU. "
                f"{reason}. To use the CPU all the same, set CUDA_VISIBLE_DEVICES to nothing"
            )


def checked_reader(job: Job, batch: BatchSettings, read: Callable[..., Iterable[Any]]) -> Callable[[str], list[Any]]:
    """Return a reader of whole files. A bad record raises UserError; --bad-records skip drops it and prints a count."""

    def records(path: str) -> list[Any]:
        bad: list[UserError] = []
        good = list(read(path, on_bad_record=bad.append if batch.bad_records == "skip" else None))
        if bad and not good:
            raise UserError(f"{path} has no valid record, the first mistake of {len(bad)}: {bad[0]}")
        if bad:
            job.console.say(f"{len(bad)} of {len(good) + len(bad)} records skipped, the first: {bad[0]}")
        return good

    return records


def say_overlap(console: Console, trained: Sequence[Any], heldout: Sequence[Any]) -> None:
    """Print a warning if held-out records share prompts with the training records."""
    prompts = {record.prompt for record in trained}
    if count := sum(record.prompt in prompts for record in heldout):
        console.say(f"warning: {count} of {len(heldout)} held-out records have a prompt that is trained on")


def check_files(read: Callable[[str], Iterable[Any]], *paths: str | None) -> None:
    """Read the user's files to the end, so that a mistake in them shows before an earlier stage runs."""
    for path in paths:
        if path is not None:
            deque(read(path), maxlen=0)


def parse_stage(stage: str, argv: Sequence[str], title: str) -> Parsed:
    """Return the settings of a training stage from its command line. `title` opens its --help."""
    description = f"{title}; with --replay FILE, rerun the batch that stopped a run."
    prog = f"deepspeed launch/{stage}.py"
    return parse.parse_settings(STAGE_SETTINGS[stage], argv, prog, description, presets(stage), demo_unless_model)


def demo_unless_model(flags: Sequence[str]) -> str:
    """Return the preset to use without --preset: demo, or default if the flags give --model."""
    return "default" if any(f.split("=")[0] == "--model" for f in flags) else "demo"


def open_job(stage: str, settings: Parsed) -> Job:
    """Check settings, join the other ranks and open the run. UserError for a wrong language or DeepSpeed config."""
    run_settings: RunSettings = settings[0]
    language = get_language(run_settings.lang)
    ds_config = read_ds_config(run_settings.deepspeed_config)
    path = Path(run_settings.output or Path(run_settings.runs, run_settings.lang, stage))
    ds_config, monitors = take_monitors(ds_config, run_settings, stage, path)
    if run_settings.deterministic:
        be_deterministic()
    world = start_world(run_settings.hang_timeout)
    console = Console(world.is_first)
    dtype = choose_dtype(run_settings.dtype, world.device, console.say)
    return Job(world, Run(path, stage, settings, world, monitors), console, language, ds_config, dtype, settings)


def earlier_settings(stage: str, settings: RunSettings, template: str | None) -> Parsed:
    """Return the settings of an earlier stage: the demo preset with the SHARED_SETTINGS of `settings`.

    A `template` of None keeps the one of the preset.
    """
    shared = {name: getattr(settings, name) for name in SHARED_SETTINGS}
    if template is not None:
        shared["template"] = template
    return build_settings(STAGE_SETTINGS[stage], presets(stage)["demo"], shared)


def embedded_data(settings: RunSettings, job: Job) -> Path:
    """Return the folder of the embedded data of the language; write it first if it does not exist."""
    path = Path(settings.runs, settings.lang, "data")
    if job.world.is_first and not path.is_dir():
        job.console.say(f"data: making the embedded {job.language.name} tasks in {path}")
        data = make_embedded(settings.lang, settings.seed, DEMO_RECORDS)
        make_whole(path, lambda part: write_embedded(data, part))
    job.world.barrier()
    return path


def embedded_model(settings: RunSettings, job: Job) -> Path:
    """Return the directory of a small untrained model with a tokenizer of the embedded texts; make it if needed."""
    path = Path(settings.runs, settings.lang, "init")
    data = embedded_data(settings, job)
    if job.world.is_first and not path.is_dir():
        job.console.say(f"base model: training a tokenizer and making a small random model in {path}")
        texts = (data / "corpus.txt").read_text(encoding="utf-8").splitlines()
        make_whole(path, lambda part: init_model(texts=texts, output=part, seed=settings.seed, **DEMO_MODEL))
    job.world.barrier()
    return path


def make_whole(folder: Path, make: Callable[[Path], Any]) -> None:
    """Call `make` on a temporary folder, then rename it, so that an interruption leaves no half-made folder."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make(part)
    os.rename(part, folder)


def stage_model(
    settings: RunSettings, stage: str, run_stage: Callable[[Parsed], None], job: Job, template: str | None
) -> Path:
    """Return the directory of an earlier stage's model; run that stage first if it has not finished."""
    path = Path(settings.runs, settings.lang, stage)
    if (path / "result.json").is_file():
        job.console.say(f"{stage}: {path / 'model'} exists, used")
    else:
        run_stage(earlier_settings(stage, settings, template))
    return path / "model"


def finished_before(job: Job) -> bool:
    """Return whether this run is already complete, and say so. UserError if the ranks disagree."""
    done = job.world.gather(job.run.finished_before())  # no rank may start before all have looked
    if not any(done):
        return False
    if not all(done):
        raise UserError(
            f"{job.run.path} is complete for rank {done.index(True)} and not for rank {done.index(False)}: "
            "give --output, or --runs, a folder on a file system that all hosts share"
        )
    job.console.say(
        f"{job.run.path} is complete with these settings, its result is shown again: --overwrite runs it again"
    )
    return True
