"""PPO here against TRL's PPOTrainer, alternating in one process: the same model, reward, prompts, batch and epochs.

TRL dropped PPO after 1.12: `pip install trl==1.12.0` after requirements.txt, in a virtual environment of its own.
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
from engine.models import load_model, save_model
from engine.presets import presets
from engine.run.folder import Run
from engine.settings import STAGE_SETTINGS, flag, split_of
from engine.text.encoding import Prompt
from engine.text.tokenizer import load_tokenizer
from engine.training.modules import RewardModule
from engine.training.ppo import PPOTrainer
from engine.training.scorers import load_scorer


@dataclass(frozen=True)
class CompareSettings:
    """The model that both sides train, and for how long."""

    _argument_group_name = "comparison"
    family: str = flag("bloom or llama", "llama", choices=["bloom", "llama"])
    layers: int = flag("number of blocks", 24)
    hidden: int = flag("width", 512)
    vocab_size: int = flag("tokens in the vocabulary", 2048)
    top_layers: int = flag("how many top layers both sides train, of the policy (TRL: and of its value model)", 4)
    reward: str = flag("ours: the reward model on the shared trunk, or one with a trunk of its own", "shared",
                       choices=["shared", "own"])  # fmt: skip
    rollouts: int = flag("rollouts an iteration", 16)
    minibatch: int = flag("rollouts an optimizer step", 4)
    epochs: int = flag("PPO epochs", 4)
    new_tokens: int = flag("tokens of each response (a random model ends one in thirty early)", 64)
    shortest: int = flag("tokens of the shortest prompt; lengths are spread evenly", 16)
    longest: int = flag("tokens of the longest prompt", 112)
    iterations: int = flag("measured iterations of each side, after one that is not", 2)
    side: str = flag("run one side alone and report its peak memory, or both for speed", "both",
                     choices=["both", "ours", "trl"])  # fmt: skip
    memory: bool = flag("measure the peak memory of each side, each in a process of its own, instead of time", False)


def prompt_lengths(s: CompareSettings) -> list[int]:
    """The length of each rollout's prompt, from the shortest to the longest in even steps."""
    span = s.longest - s.shortest
    return [s.shortest + round(i * span / max(1, s.rollouts - 1)) for i in range(s.rollouts)]


def make_models(s: CompareSettings, folder: Path) -> None:
    """`policy` and `reward`: random weights; the reward model differs from its trunk on in the layers it trains."""
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
    """Random prompts: their tokens are ordinary ones, of which there are more than the special ones in front."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(8, s.vocab_size, (n,), generator=generator).tolist() for n in prompt_lengths(s)]


class Ours:
    """One iteration after another of this project's trainer."""

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
        model, tokenizer = load_model(folder / "policy"), load_tokenizer(folder / "policy")
        split = split_of(ppo.top_layers, model.num_layers)
        scorer = load_scorer(str(folder / "reward"), model, split, tokenizer, batch.tokens_per_microbatch)
        prompts = [Prompt(str(i), tuple(tokens), "", "") for i, tokens in enumerate(prompts_of(s))]
        self.trainer = PPOTrainer(
            model, tokenizer, [tokenizer.eos_token_id], prompts, scorer, *settings, world, run, Console(False), {}
        )  # fmt: skip
        self.iteration = 0

    def iterate(self) -> dict[str, float]:
        began = time.perf_counter()
        x = self.trainer.iterate(self.iteration)
        self.iteration += 1
        seconds = time.perf_counter() - began
        return {"total": seconds, "generation": x["time/generation_s"], "policy loss": x["loss/policy_avg"],
                "value loss": x["loss/value_avg"], "kl": x["objective/kl"]}  # fmt: skip


class Theirs:
    """One iteration after another of TRL's trainer: lower layers frozen, the best of its settings."""

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
            tokenizer.pad_token = tokenizer.unk_token  # the prompts have none of it
        policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        reference = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        reward, value = (
            AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
            for _ in range(2)
        )
        for model in (policy, value):
            model.requires_grad_(False)
            body = model.base_model
            blocks, norm = (body.h, body.ln_f) if s.family == "bloom" else (body.layers, body.norm)
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
    """Alternating iterations; medians, and the ratios of TRL's to ours."""
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
    console.table([f"an iteration of {s.rollouts} rollouts", "ours", "TRL", "ratio"], table)
    return {f"{k} ratio": v for k, v in ratios.items()}


def memory_mib(field: str) -> float:
    """A line of Linux's account of this process: VmRSS is what it holds now, VmHWM the most it ever held.

    Not getrusage: its peak is handed down from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def peak_memory_mib(s: CompareSettings, folder: Path) -> float:
    """Peak resident memory of this process above what it had before its side was built, after one iteration."""
    before = memory_mib("VmRSS")
    side = Ours(s, folder, start_world()) if s.side == "ours" else Theirs(s, folder)
    side.iterate()
    return memory_mib("VmHWM") - before


def compare_memory(s: CompareSettings, folder: Path, console: Console) -> dict[str, float]:
    """One iteration of each side in a process of its own."""
    make_models(s, folder)
    peaks = {}
    for side in ("ours", "trl"):
        flags = [x for k, v in asdict(s).items() if k not in ("side", "memory") for x in (f"--{k}", str(v))]
        command = [sys.executable, __file__, *flags, "--side", side, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{side} failed: {done.stderr.strip().splitlines()[-1]}")
        peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak MiB"]
    weights = sum(p.numel() * 4 for p in load_model(folder / "policy").parameters()) / 2**20
    ratio = peaks["ours"] / peaks["trl"]
    console.table(["peak memory above start-up, one iteration", "MiB", "models' worth"], [
        [name, f"{mib:.0f}", f"{mib / weights:.1f}"] for name, mib in peaks.items()
    ])  # fmt: skip
    console.say(f"  ours / TRL: {ratio:.2f}")
    return {"ours MiB": peaks["ours"], "trl MiB": peaks["trl"], "ratio": ratio}


@dataclass(frozen=True)
class FolderSettings:
    """Where the models of a comparison lie."""

    _argument_group_name = "files"
    folder: str | None = flag("folder of models made before (default: a temporary one)", None)


def job(argv: Sequence[str]) -> None:
    """Compare, say what was compared, and print one JSON line last."""
    s, files = parse_settings(
        (CompareSettings, FolderSettings), argv, "launch/bench/ppo_trl.py", __doc__.split("\n")[0]
    )
    if s.rollouts % s.minibatch:
        raise UserError(f"--rollouts {s.rollouts} is no multiple of --minibatch {s.minibatch}: TRL needs one")
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
        "model": f"{s.family}, {s.layers} layers of {s.hidden}, vocabulary {s.vocab_size:,}, float32, random weights",
        "trained": f"top {s.top_layers} (TRL: of the policy and of its value model), AdamW, lr 1e-5",
        "batch": f"{s.rollouts} rollouts, {s.minibatch} a step, {s.epochs} PPO epochs, temperature 1",
        "tokens": f"prompts of {lengths[0]} to {lengths[-1]} ({padded / sum(lengths):.2f}x when padded), "
        f"{s.new_tokens} new each",
        "ours": f"packed; trunk kept; reward model on the {s.reward} trunk; critic a head on the policy's top",
        "TRL": "left-padded, one batch for rollouts, no gradient checkpointing, value model started from the reward's",
        "threads": torch.get_num_threads(),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        compare = compare_memory if s.memory else compare_time
        result = compare(s, Path(scratch), console)
    assert all(map(math.isfinite, result.values()))
    print(json.dumps({**asdict(s), **result}))


if __name__ == "__main__":
    main(job)
