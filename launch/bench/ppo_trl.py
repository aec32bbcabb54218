"""Compare our PPO with TRL's PPOTrainer on the same model, reward, prompts, batch and epochs.

Both sides alternate in one process. TRL removed PPO after 1.12: run `pip install trl==1.12.0` after requirements.txt,
in a separate virtual environment.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from datagen.embedded import make_embedded
from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import build_settings, main, parse_settings
from engine.distributed.world import start_world
from engine.init_model import init_model
from engine.models import load_config, load_model, save_model
from engine.presets import presets
from engine.run.folder import Run
from engine.settings import STAGE_SETTINGS, flag, split_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import load_tokenizer
from engine.training.context import Context
from engine.training.modules import RewardModule
from engine.training.ppo import PPOTrainer
from engine.training.scorers import load_scorer


@dataclass(frozen=True)
class CompareSettings:
    """The model that both sides train, the batch, and the number of iterations."""

    _argument_group_name = "comparison"
    family: str = flag("bloom or llama", "llama", choices=["bloom", "llama"])
    layers: int = flag("number of blocks", 24)
    hidden: int = flag("width", 512)
    vocab_size: int = flag("tokens in the vocabulary", 2048)
    policy: str | None = flag("directory of the policy (default: a random model of the shape above)", None)
    reward_model: str | None = flag("directory of its reward model; with --policy", None)
    top_layers: int = flag("top layers of the policy (and of TRL's value model) that both sides train", 4)
    reward: str = flag("ours: reward model on the shared trunk, or with its own trunk", "shared",
                       choices=["shared", "own"])  # fmt: skip
    rollouts: int = flag("rollouts per iteration", 16)
    minibatch: int = flag("rollouts per optimizer step", 4)
    epochs: int = flag("PPO epochs", 4)
    new_tokens: int = flag("tokens per response (a random model ends one in thirty early)", 64)
    shortest: int = flag("tokens of the shortest prompt; lengths are evenly spaced", 16)
    longest: int = flag("tokens of the longest prompt", 112)
    iterations: int = flag("measured iterations per side, after one warm-up iteration", 2)
    side: str = flag("both: compare speed; ours or trl: run one side and print its peak memory", "both",
                     choices=["both", "ours", "trl"])  # fmt: skip
    memory: bool = flag("compare peak memory instead of time, each side in its own process", False)


def prompt_lengths(s: CompareSettings) -> list[int]:
    """Return the prompt length of each rollout, evenly spaced from shortest to longest."""
    span = s.longest - s.shortest
    return [s.shortest + round(i * span / max(1, s.rollouts - 1)) for i in range(s.rollouts)]


def make_models(s: CompareSettings, folder: Path) -> None:
    """Put `policy` and `reward` into the folder: links to the given models, else random ones.

    The random reward model is the policy with noise: in the top layers if its trunk is shared, else in all layers.
    """
    if s.policy is not None:
        for name, path in (("policy", s.policy), ("reward", s.reward_model)):
            (folder / name).symlink_to(Path(path).resolve())
        return
    texts = (f"{r['instruction']} {r['input']} {r['output']}" for r in make_embedded("ne", 0, 3000).sft)
    shape = {"layers": s.layers, "hidden": s.hidden, "heads": s.hidden // 64, "max_positions": 1024}
    init_model(texts, s.vocab_size, str(folder / "policy"), 0, family=s.family, **shape)
    model, tokenizer = load_model(folder / "policy"), load_tokenizer(folder / "policy")
    generator = torch.Generator().manual_seed(1)
    first = s.layers - s.top_layers if s.reward == "shared" else 0
    with torch.no_grad():
        for layer in model.layers[first:]:
            for weight in layer.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=generator) * (weight.ndim > 1)
    save_model(model, folder / "reward", tokenizer, RewardModule.new_score_weight(model, 2))


def prompts_of(s: CompareSettings) -> list[list[int]]:
    """Return random prompts. Their tokens start at 8, above the special tokens."""
    generator = torch.Generator().manual_seed(3)
    vocab_size = load_config(s.policy).vocab_size if s.policy else s.vocab_size
    return [torch.randint(8, vocab_size, (n,), generator=generator).tolist() for n in prompt_lengths(s)]


class Ours:
    """Iterations of our PPOTrainer."""

    def __init__(self, s: CompareSettings, folder: Path, world):
        settings = build_settings(STAGE_SETTINGS["ppo"], presets("ppo")["default"], {
            "lang": "ne", "lr": 1e-5, "batch_size": s.rollouts, "epochs": s.iterations + 1,
            "max_length": s.longest + s.new_tokens, "minibatch_size": s.minibatch, "ppo_epochs": s.epochs,
            "max_new_tokens": s.new_tokens, "top_layers": str(s.top_layers), "kl_controller": "fixed", "kl_coef": 0.05,
            "tokens_per_microbatch": s.minibatch * (s.longest + s.new_tokens),
        })  # fmt: skip
        _, _, batch, ppo = settings
        run = Run(folder / "run", "ppo", settings, world)
        run.start()
        model = load_model(folder / "policy", device=world.device)
        tokenizer = load_tokenizer(folder / "policy")
        split = split_of(ppo.top_layers, model.num_layers)
        scorer = load_scorer(str(folder / "reward"), model, split, tokenizer, batch.tokens_per_microbatch)
        prompts = [Prompt(str(i), tuple(tokens), "", "") for i, tokens in enumerate(prompts_of(s))]
        context = Context(*settings, world, run, Console(False), {})
        self.trainer = PPOTrainer(model, tokenizer, [tokenizer.eos_token_id], prompts, scorer, context)
        self.iteration = 0

    def iterate(self) -> dict[str, float]:
        began = time.perf_counter()
        x = self.trainer.iterate(self.iteration)
        self.iteration += 1
        seconds = time.perf_counter() - began
        return {"total": seconds, "generation": x["time/generation_s"], "policy loss": x["loss/policy_avg"],
                "value loss": x["loss/value_avg"], "kl": x["objective/kl"]}  # fmt: skip


class Theirs:
    """Iterations of TRL's PPOTrainer with frozen lower layers and its best settings."""

    def __init__(self, s: CompareSettings, folder: Path):
        try:
            from datasets import Dataset
            from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
            from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
        except ImportError as error:
            raise UserError(f"TRL's PPO cannot be imported ({error}): pip install trl==1.12.0") from error
        tokenizer = load_tokenizer(folder / "policy")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token  # the prompts do not contain it
        policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        reference = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        reward, value = (
            AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
            for _ in range(2)
        )
        for model in (policy, value):
            model.requires_grad_(False)
            body = model.base_model
            blocks, norm = (body.h, body.ln_f) if hasattr(body, "h") else (body.layers, body.norm)
            for part in (*blocks[-s.top_layers :], norm):
                part.requires_grad_(True)
        value.score.requires_grad_(True)
        arguments = PPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=s.minibatch,
            gradient_accumulation_steps=s.rollouts // s.minibatch, num_mini_batches=s.rollouts // s.minibatch,
            num_ppo_epochs=s.epochs, total_episodes=s.rollouts, local_rollout_forward_batch_size=s.rollouts,
            response_length=s.new_tokens, temperature=1.0, kl_coef=0.05, learning_rate=1e-5, report_to="none",
            use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, num_sample_generations=0,
            disable_tqdm=True, save_strategy="no", missing_eos_penalty=None,
        )  # fmt: skip
        self.logged: dict[str, float] = {}
        self.generation_s = 0.0
        generate = ppo_trainer.batch_generation

        def timed(*args, **kwargs):
            began = time.perf_counter()
            out = generate(*args, **kwargs)
            self.generation_s = time.perf_counter() - began
            return out

        ppo_trainer.batch_generation = timed
        dataset = Dataset.from_dict({"input_ids": prompts_of(s)})
        self.trainer = PPOTrainer(
            args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
            value_model=value, train_dataset=dataset, eval_dataset=dataset,
        )  # fmt: skip
        self.trainer.log = self.logged.update

    def iterate(self) -> dict[str, float]:
        began = time.perf_counter()
        self.trainer.train()
        seconds = time.perf_counter() - began
        return {"total": seconds, "generation": self.generation_s, "policy loss": self.logged["loss/policy_avg"],
                "value loss": self.logged["loss/value_avg"], "kl": self.logged["objective/kl"]}  # fmt: skip


def compare_time(s: CompareSettings, folder: Path, console: Console) -> dict[str, float]:
    """Alternate iterations, print medians, and return the ratios of TRL's times to ours."""
    make_models(s, folder)
    sides = {"ours": Ours(s, folder, start_world()), "trl": Theirs(s, folder)}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for i in range(s.iterations + 1):
        for name, side in sides.items():
            row = side.iterate()
            row["scoring + update"] = row["total"] - row["generation"]
            console.row({"side": name, "iteration": "warm-up" if i == 0 else str(i)} | {
                k: f"{v:.3f}" for k, v in row.items()
            })  # fmt: skip
            if i:
                rows[name].append(row)
    medians = {
        name: {k: statistics.median(row[k] for row in done) for k in ("generation", "scoring + update", "total")}
        for name, done in rows.items()
    }
    ratios = {k: medians["trl"][k] / medians["ours"][k] for k in medians["ours"]}
    console.say()
    table = [[k, f"{medians['ours'][k]:.2f} s", f"{medians['trl'][k]:.2f} s", f"{ratios[k]:.1f}x"] for k in ratios]
    console.table([f"per iteration of {s.rollouts} rollouts", "ours", "TRL", "ratio"], table)
    return {f"{k} ratio": v for k, v in ratios.items()}


def memory_mib(field: str) -> float:
    """Return a field of /proc/self/status in MiB: VmRSS is the current resident memory, VmHWM its peak.

    Not getrusage: a process inherits its peak from the process that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def peak_memory_mib(s: CompareSettings, folder: Path) -> float:
    """Return the rise of peak resident memory in MiB while one side is built and runs one iteration."""
    before = memory_mib("VmRSS")
    side = Ours(s, folder, start_world()) if s.side == "ours" else Theirs(s, folder)
    side.iterate()
    return memory_mib("VmHWM") - before


def compare_memory(s: CompareSettings, folder: Path, console: Console) -> dict[str, float]:
    """Run one iteration of each side in its own process; print and return the peaks."""
    make_models(s, folder)
    peaks = {}
    for side in ("ours", "trl"):
        given = {k: v for k, v in asdict(s).items() if k not in ("side", "memory") and v is not None}
        flags = [x for k, v in given.items() for x in (f"--{k}", str(v))]
        command = [sys.executable, __file__, *flags, "--side", side, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{side} failed: {done.stderr.strip().splitlines()[-1]}")
        peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak MiB"]
    weights = sum(p.numel() * 4 for p in load_model(folder / "policy").parameters()) / 2**20
    ratio = peaks["ours"] / peaks["trl"]
    console.table(["peak memory above start-up, one iteration", "MiB", "x model size"], [
        [name, f"{mib:.0f}", f"{mib / weights:.1f}"] for name, mib in peaks.items()
    ])  # fmt: skip
    console.say(f"  ours / TRL: {ratio:.2f}")
    return {"ours MiB": peaks["ours"], "trl MiB": peaks["trl"], "ratio": ratio}


@dataclass(frozen=True)
class FolderSettings:
    """The folder of the models."""

    _argument_group_name = "files"
    folder: str | None = flag("folder of existing models (default: make them in a temporary folder)", None)


def job(argv: Sequence[str]) -> None:
    """Print what is compared, compare it, and print one JSON line last."""
    s, files = parse_settings(
        (CompareSettings, FolderSettings), argv, "launch/bench/ppo_trl.py", __doc__.split("\n")[0]
    )
    if s.rollouts % s.minibatch:
        raise UserError(f"--rollouts {s.rollouts} is not a multiple of --minibatch {s.minibatch}: TRL needs one")
    if (s.policy is None) != (s.reward_model is None):
        raise UserError("--policy and --reward-model go together: give both, or neither for random models")
    console = Console()
    if s.side != "both":
        with tempfile.TemporaryDirectory() as scratch:
            if files.folder is None:
                make_models(s, Path(scratch))
            print(json.dumps({"peak MiB": peak_memory_mib(s, Path(files.folder or scratch))}))
        return
    lengths = prompt_lengths(s)
    padded = s.rollouts * max(lengths)
    console.header("PPO against TRL 1.12", {
        "model": f"{s.policy}, float32" if s.policy else
        f"{s.family}, {s.layers} layers of {s.hidden}, vocabulary {s.vocab_size:,}, float32, random weights",
        "trained": f"top {s.top_layers} (TRL: of the policy and of its value model), AdamW, lr 1e-5",
        "batch": f"{s.rollouts} rollouts, {s.minibatch} per step, {s.epochs} PPO epochs, temperature 1",
        "tokens": f"prompts of {lengths[0]} to {lengths[-1]} ({padded / sum(lengths):.2f}x when padded), "
        f"{s.new_tokens} new each",
        "ours": f"packed; trunk kept; reward model on the {s.reward} trunk; value head on the policy's top layers",
        "TRL": "left-padded, one batch for rollouts, no gradient checkpointing, value model starts as the reward model",
        "threads": torch.get_num_threads(),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        compare = compare_memory if s.memory else compare_time
        result = compare(s, Path(scratch), console)
    assert all(map(math.isfinite, result.values()))
    print(json.dumps({**asdict(s), **result}))


if __name__ == "__main__":
    main(job)
