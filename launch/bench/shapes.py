"""Time every phase on a real model against transformers, in one run: `python launch/bench/shapes.py --model DIR`.

Decoding at three batch sizes, prefill, an SFT step, a PPO iteration, and scoring of choices. Both sides compute in
float32 with the same weights and the same numbers of tokens. Sides alternate; the table shows medians.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.parse import build_settings, main, parse_settings
from engine.distributed.world import World, start_world
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models import load_model
from engine.presets import presets
from engine.run.folder import Run
from engine.settings import STAGE_SETTINGS, check_at_least, flag, split_of
from engine.text.encoding import Example, Prompt
from engine.text.tokenizer import load_tokenizer
from engine.training.context import Context
from engine.training.ppo import PPOTrainer
from engine.training.scorers import load_scorer
from engine.training.sft import SFTTrainer
from evaluation.scoring.documents import Choice, Document
from evaluation.scoring.score import Scorer
from kernels.common.bench import json_line, median_s
from launch.bench import shapes_peer as peer

NO_EOS = -1
Pair = tuple[Callable[[], object], Callable[[], object]]  # ours, the peer's
PHASES = ("decode", "prefill", "score", "sft", "ppo")


@dataclass(frozen=True)
class BenchSettings:
    """The model and the sizes of the phases."""

    _argument_group_name = "bench"
    model: str = flag("the model, a Hugging Face directory with a tokenizer")
    phases: list[str] | None = flag(f"phases to time: {', '.join(PHASES)} (default: all)", None)
    batches: list[int] | None = flag("batch sizes of decoding (default: 1 8 32)", None)
    new_tokens: int = flag("tokens that decoding adds to each prompt of 32", 64)
    prompts: int = flag("prompts of prefill, 64 to 512 tokens long", 8)
    sequences: int = flag("sequences of an SFT step, 32 to 160 tokens long", 8)
    rollouts: int = flag("rollouts of a PPO iteration: prompts of 16 to 112 tokens", 16)
    response: int = flag("tokens of a PPO response", 64)
    minibatch: int = flag("rollouts per PPO update, and sequences per forward of the peer", 4)
    epochs: int = flag("PPO epochs", 4)
    top_layers: int = flag("layers that PPO trains", 4)
    contexts: int = flag("contexts of scoring, 200 tokens with four choices of 4 to 12", 8)
    repeats: int = flag("measured rounds per phase, after one warm-up round", 3)

    def __post_init__(self) -> None:
        check_at_least(1, self, *(name for name, value in asdict(self).items() if isinstance(value, int)))
        for name in self.phases or ():
            if name not in PHASES:
                raise UserError(f"--phases {name} is unknown: one of {', '.join(PHASES)}")


class Bench:
    """Builds the two sides of each phase."""

    def __init__(self, s: BenchSettings, world: World, folder: Path):
        self.s, self.world, self.folder = s, world, folder
        self.rng, self.vocab = random.Random(0), load_model(s.model).vocab_size

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(8, self.vocab) for _ in range(count))

    def spread(self, count: int, shortest: int, longest: int) -> list[tuple[int, ...]]:
        """Return random sequences with evenly spaced lengths."""
        span = longest - shortest
        return [self.tokens(shortest + round(i * span / max(1, count - 1))) for i in range(count)]

    def theirs(self):
        """Load the model in transformers, with its default attention."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.s.model, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        return model

    def decode(self) -> dict[str, Pair]:
        ours, theirs = load_model(self.s.model).requires_grad_(False), self.theirs()
        pairs = {}
        for batch in self.s.batches or (1, 8, 32):
            prompts = [self.tokens(32) for _ in range(batch)]
            pairs[f"decode, batch {batch}"] = (
                self.generating(ours, prompts, self.s.new_tokens),
                lambda prompts=prompts: peer.decode(theirs, prompts, self.s.new_tokens),
            )
        return pairs

    def prefill(self) -> dict[str, Pair]:
        ours, theirs = load_model(self.s.model).requires_grad_(False), self.theirs()
        prompts = self.spread(self.s.prompts, 64, 512)
        return {"prefill": (self.generating(ours, prompts, 1), lambda: peer.prefill(theirs, prompts))}

    def generating(self, model, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> Callable[[], object]:
        """Return our rollout, with a cache that is allocated once."""
        requests = [Request(prompt, i, 0, new_tokens) for i, prompt in enumerate(prompts)]
        workspace = Workspace()
        return lambda: generate(model, requests, Sampling(0.0), 0, NO_EOS, len(prompts), workspace=workspace)

    def score(self) -> dict[str, Pair]:
        ours, theirs = load_model(self.s.model).requires_grad_(False), self.theirs()
        contexts = [self.tokens(200) for _ in range(self.s.contexts)]
        choices = self.spread(4, 4, 12)
        about = {"task": "random", "lang": "en", "shot_ids": (), "prompt": ""}
        documents = [
            Document(index=i, id=str(i), gold=0, choices=tuple(Choice(c, x, "", 1, 1, False) for x in choices), **about)
            for i, c in enumerate(contexts)
        ]
        return {
            "score choices": (
                lambda: dict(Scorer(ours).score(documents)),
                lambda: peer.score(theirs, contexts, choices, self.s.minibatch),
            )
        }

    def sft(self) -> dict[str, Pair]:
        sequences = self.spread(self.s.sequences, 32, 160)
        examples = [Example(str(i), tokens, len(tokens) // 2) for i, tokens in enumerate(sequences)]
        settings = build_settings(STAGE_SETTINGS["sft"], presets("sft")["default"], {
            "lang": "en", "lr": 1e-5, "warmup_steps": 0, "schedule": "constant", "batch_size": len(sequences),
            "epochs": self.s.repeats + 1, "max_length": 160, "tokens_per_microbatch": 160 * self.s.minibatch,
            "top_layers": "all", "trunk_cache": 0.0,
        })  # fmt: skip
        trainer = SFTTrainer(load_model(self.s.model), examples, [], self.context("sft", settings))
        theirs, steps = peer.SFT(self.theirs().train(), sequences, self.s.minibatch), iter(range(self.s.repeats + 1))
        return {"SFT step, all layers": (lambda: trainer.step(next(steps)), theirs.step)}

    def ppo(self) -> dict[str, Pair]:
        s, prompts = self.s, self.spread(self.s.rollouts, 16, 112)
        settings = build_settings(STAGE_SETTINGS["ppo"], presets("ppo")["default"], {
            "lang": "en", "lr": 1e-5, "batch_size": s.rollouts, "epochs": s.repeats + 1,
            "max_length": 112 + s.response, "minibatch_size": s.minibatch, "ppo_epochs": s.epochs,
            "max_new_tokens": s.response, "top_layers": str(s.top_layers), "kl_controller": "fixed", "kl_coef": 0.05,
            "tokens_per_microbatch": s.minibatch * (112 + s.response), "min_new_tokens": s.response,
        })  # fmt: skip
        model, tokenizer = load_model(s.model), load_tokenizer(s.model)
        split = split_of(settings[3].top_layers, model.num_layers)
        scorer = load_scorer("engine.reward_functions:noise", model, split, tokenizer, 4096)
        records = [Prompt(str(i), tokens, "", "") for i, tokens in enumerate(prompts)]
        trainer = PPOTrainer(model, tokenizer, [tokenizer.eos_token_id], records, scorer, self.context("ppo", settings))
        sizes = (s.response, s.minibatch, s.epochs, s.top_layers)
        theirs = peer.PPO(self.theirs(), self.theirs(), prompts, *sizes)
        iterations = iter(range(s.repeats + 1))
        return {f"PPO iteration, top {s.top_layers}": (lambda: trainer.iterate(next(iterations)), theirs.iterate)}

    def context(self, stage: str, settings) -> Context:
        run = Run(self.folder / stage, stage, settings, self.world)
        run.start()
        return Context(*settings, self.world, run, Console(enabled=False), {})


def job(argv: Sequence[str]) -> None:
    """Time the phases one after the other; print the table and a JSON line."""
    (s,) = parse_settings((BenchSettings,), argv, "python launch/bench/shapes.py", __doc__.split("\n")[0])
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both sides run on the CPU
    console, rows = Console(), []
    console.header("Phases against transformers", {
        "model": f"{s.model}, float32", "threads": torch.get_num_threads(), "rounds": s.repeats,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(s, start_world(), Path(scratch))
        for phase in s.phases or PHASES:
            for name, (ours, theirs) in getattr(bench, phase)().items():
                seconds = median_s({"ours": ours, "transformers": theirs}, "cpu", s.repeats)
                rows.append({"phase": name, **seconds, "ratio": seconds["transformers"] / seconds["ours"]})
                console.say(f"  {name}: {seconds['ours']:.2f} s, transformers {seconds['transformers']:.2f} s")
            ours = theirs = None
            gc.collect()
    console.say()
    console.table(["phase", "ours, s", "transformers, s", "ratio"], [
        [row["phase"], f"{row['ours']:.2f}", f"{row['transformers']:.2f}", f"{row['ratio']:.1f}x"] for row in rows
    ])  # fmt: skip
    print(json_line({"settings": asdict(s), "rows": rows}))


if __name__ == "__main__":
    main(job)
