"""The manifest: hashes and settings of everything that a result depends on, and how two manifests differ."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.models.config_rules import computed_from
from engine.models.quantised import stored_weights
from evaluation.answers.build import TaskQuestions
from evaluation.answers.records import asked_ids_sha256, asked_sha256
from evaluation.results.records import ids_sha256, prompts_sha256
from evaluation.scoring.documents import TaskDocuments
from kernels.skinny_linear import cpu as skinny_linear

FORMAT = 1
VERSIONS = ("torch", "transformers", "tokenizers", "numpy")
SCORING_CODE = (
    *("kernels/**/*.py", "kernels/**/*.cpp", "kernels/**/*.h", "engine/models/*.py"),
    *("evaluation/scoring/prefix_tree.py", "evaluation/scoring/score.py", "evaluation/scoring/tree_forward.py"),
)
# What answers depend on besides: how they are generated, and what checks them.
ANSWER_CODE = (
    *("engine/generation/**/*.py", "engine/base/rules.py", "engine/base/in_language.py", "engine/reward_functions.py"),
    *("evaluation/checks/*.py", "evaluation/answers/*.py"),
)


def run_manifest(model: Any, tokenizer: Any, package_version: str) -> dict[str, Any]:
    """Return the part of the manifest that all tasks of a run share: model, dtype, device, versions and code."""
    weight = model.head_weight
    return {
        "format": FORMAT,
        "weights_sha256": weights_sha256(model),
        "config_sha256": config_sha256(model.config),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": _device_name(weight.device),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
            "okapi-rlhf": package_version,
        },
        "code_sha256": code_sha256(),
    }


def task_manifest(built: TaskDocuments, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of one task in one language: protocol, settings, and hashes of data, prompts and token ids."""
    return {
        "task": built.task.name,
        "lang": built.lang,
        "protocol": built.protocol,
        "shots": built.shots,
        **settings,
        **({} if built.empty_context is None else {"empty_context": built.empty_context}),
        "documents": len(built.documents),
        "data": [asdict(source) for source in built.sources],
        "prompts_sha256": prompts_sha256(built.documents),
        "token_ids_sha256": ids_sha256(built.documents),
    }


def answers_manifest(
    built: TaskQuestions, settings: Mapping[str, Any], answers: Mapping[str, Any], of_model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of one generation task in one language.

    answers   how its answers are generated and checked; runs that differ here do not measure the same
    of_model  what the model brings along, such as its template
    """
    return {
        "task": built.task.name,
        "lang": built.lang,
        "protocol": built.protocol,
        "shots": built.shots,
        **settings,
        "answers": dict(answers),
        **of_model,
        "answers_code_sha256": code_sha256(ANSWER_CODE),
        "documents": len(built.asked),
        "data": [asdict(source) for source in built.sources],
        "prompts_sha256": asked_sha256(built.asked),
        "token_ids_sha256": asked_ids_sha256(built.asked),
    }


def code_sha256(patterns: tuple[str, ...] = SCORING_CODE) -> str:
    """Return the SHA-256 of the sources that compute scores: a new order of summation changes the last bits."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(p for pattern in patterns for p in root.glob(pattern)):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def weights_sha256(model: torch.nn.Module) -> str:
    """Return the SHA-256 of every weight's name, shape, dtype and bytes, in order of names.

    It does not depend on how the weights are split into files.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(stored_weights(model)):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        data = weight.detach().cpu().contiguous().view(-1).view(torch.uint8)
        for block in data.split(1 << 26):
            digest.update(block.numpy())
    return digest.hexdigest()


def config_sha256(config: Any) -> str:
    """Return the SHA-256 of the config's fields that change what the model computes."""
    text = json.dumps(computed_from(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return the SHA-256 of the tokenizer's rules and of the ids that it adds to an empty text."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr(tokenizer("").input_ids).encode())
    return digest.hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the entries that differ between two manifests, nested ones as "outer.inner"."""
    names: list[str] = []
    for name in sorted({*a, *b}):
        if name in ignore:
            continue
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += [f"{name}.{inner}" for inner in differences(left, right, ignore)]
        elif left != right:
            names.append(name)
    return names


def _device_name(device: torch.device) -> str:
    """Return a GPU's name, or for a CPU what decides the rounding of sums: instruction set, AMX, C++ kernels."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    kernels = "without a compiler" if skinny_linear.library() is None else ""
    unit = "with AMX" if skinny_linear.has_matrix_unit() else ""
    return " ".join(filter(None, ("cpu", torch.backends.cpu.get_cpu_capability(), unit, kernels)))
