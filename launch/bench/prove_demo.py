"""Compare the demo's PPO with a control: `python launch/bench/prove_demo.py --lang ne --seeds 0,1,2`.

For each seed, run the demo, then run PPO again from the same SFT model and prompts with a reward that carries no
information. The gain in right answers must exceed both confidence intervals with the trained reward, and must not with
the control. The command reuses finished runs, so run it again after an interruption.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.run.folder import read_result
from engine.settings import flag
from engine.training.heldout import SHOWN, Estimate, shown

CONTROL = "engine.reward_functions:noise"
MEASURES = ("exact_match", "right_then_more", "score")


@dataclass(frozen=True)
class ProofSettings:
    """Language, seeds and folder of the runs."""

    _argument_group_name = "proof"
    lang: str = flag("language code: ru, zh, ne, ... (26 languages and en)", "ne")
    seeds: str = flag("seeds of the demo, separated by commas", "0,1,2")
    runs: str = flag("folder of the runs", "runs/proof")

    def __post_init__(self) -> None:
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise UserError(f"--seeds is {self.seeds!r}: give numbers separated by commas, such as 0,1,2")


def job(argv: Sequence[str]) -> None:
    """Run what is missing, then print the table and the verdict. UserError if the claim does not hold."""
    (settings,) = parse_settings((ProofSettings,), argv, "python launch/bench/prove_demo.py", __doc__.split("\n")[0])
    get_language(settings.lang)
    rows, failed = [], []
    for seed in map(int, settings.seeds.split(",")):
        for name, result in both(settings.lang, seed, Path(settings.runs, f"seed{seed}")).items():
            rows.append([f"{seed}, {name}", *cells(result)])
            if learned(result) != (name == "reward model"):
                failed.append(f"seed {seed}, {name}")
    console = Console()
    titles = [f"{SHOWN[name]}: SFT -> PPO" for name in MEASURES]
    console.say()
    console.table(["seed, reward", *titles, "gain in right answers", "KL"], rows)
    if failed:
        raise UserError(
            f"not shown for {'; '.join(failed)}: a reward model must gain more than both intervals, noise must not"
        )
    console.say("\n  every reward model gains more than both intervals, no control does")


def both(lang: str, seed: int, runs: Path) -> dict[str, dict[str, Any]]:
    """Run the demo and its control, and return their PPO results."""
    common = ["--lang", lang, "--seed", str(seed), "--runs", str(runs)]
    stages = runs / lang
    run(common, stages / "ppo")
    data = ["--data", str(stages / "data" / "rl.jsonl"), "--eval-data", str(stages / "data" / "heldout.jsonl")]
    model = ["--model", str(stages / "sft" / "model"), "--reward", CONTROL, "--preset", "demo"]
    run([*common, *model, *data, "--output", str(stages / "control")], stages / "control")
    return {name: read_result(stages / stage) for name, stage in (("reward model", "ppo"), ("noise", "control"))}


def run(flags: Sequence[str], folder: Path) -> None:
    """Run PPO in its own process, or resume it. Does nothing if the folder contains a finished run."""
    if read_result(folder) is not None:
        return
    ppo = Path(__file__).parents[1] / "ppo.py"
    command = [
        sys.executable,
        str(ppo),
        *flags,
        "--save-every",
        "20",
        *(["--resume"] if folder.parent.is_dir() else []),
    ]
    if code := subprocess.run(command, check=False).returncode:
        raise UserError(f"PPO ended with status {code} in {folder}: see its last line above")


def learned(result: dict[str, Any]) -> bool:
    """Return whether the gain in right answers exceeds the sum of both half intervals."""
    right = {when: Estimate(*pair) for when, pair in result["heldout"]["exact_match"].items()}
    return right["after"].mean - right["before"].mean > right["before"].half + right["after"].half


def cells(result: dict[str, Any]) -> list[str]:
    """Return the table cells of one run: held-out metrics, the gain, and the KL."""
    heldout = {n: {w: Estimate(*pair) for w, pair in sides.items()} for n, sides in result["heldout"].items()}
    changes = [f"{shown(n, heldout[n]['before'])} -> {shown(n, heldout[n]['after'])}" for n in MEASURES]
    return [*changes, shown("exact_match", heldout["exact_match"]["difference"]), f"{result['kl_last']:.2f}"]


if __name__ == "__main__":
    main(job)
