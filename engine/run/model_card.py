"""The model card and the generation settings that go with an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.languages import LANGUAGES
from engine.run.kept import in_words

STAGES = {
    "pretrain": "continued pretraining", "sft": "supervised fine-tuning", "reward": "a reward model",
    "dpo": "direct preference optimisation", "ppo": "{} against a reward model", "merge": "a merge of models",
}  # fmt: skip
# Settings shown in a card; the run's config.json has all of them.
_SHOWN = (
    *("preset", "lr", "batch_size", "epochs", "max_steps", "max_length", "template", "loss_on", "top_layers"),
    *("lora_rank", "bottom_layers", "embedding_lr", "schedule"),
    *("beta", "dpo_loss", "label_smoothing", "length_normalised", "sft_coef", "advantage", "samples_per_prompt"),
    *("trained_layers", "kl_coef", "kl_controller", "ppo_epochs", "max_new_tokens", "temperature", "seed", "dtype"),
    *("keep_best", "target_kl", "stop_kl"),
)


def method_name(advantage: str) -> str:
    """Return the name of the method with this --advantage."""
    return {"gae": "PPO", "rloo": "RLOO", "grpo": "GRPO"}.get(advantage, "REINFORCE")


def write_card(
    model_dir: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    result: Mapping[str, Any],
    tokenizer: Any,
    eos_ids: Sequence[int],
) -> None:
    """Write README.md and, except for a reward model, generation_config.json.

    `inputs` names what was read (model, data, reward); `result` is the run's result.
    """
    try:
        (model_dir / "README.md").write_text(card(stage, settings, inputs, result), encoding="utf-8")
        if stage != "reward":
            text = json.dumps(generation_config(settings, tokenizer, eos_ids), indent=2) + "\n"
            (model_dir / "generation_config.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{model_dir} cannot be written ({error.strerror}): check its permissions") from error


def generation_config(settings: Mapping[str, Any], tokenizer: Any, eos_ids: Sequence[int]) -> dict[str, Any]:
    """Return transformers' generation_config.json: the run's sampling settings, response length and EOS tokens."""
    config = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "max_new_tokens": settings.get("max_new_tokens", 256),
    }
    if (temperature := settings.get("temperature", 0)) > 0:
        config |= {
            "do_sample": True,
            "temperature": temperature,
            "top_p": settings["top_p"],
            "top_k": settings["top_k"],
        }
    return {name: value for name, value in config.items() if value is not None}


def card(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the card in Markdown, with the metadata block that the Hugging Face hub reads."""
    code = settings.get("lang")
    name = LANGUAGES[code].name if code in LANGUAGES else code
    method = method_name(settings.get("advantage", "gae"))
    tags = ["rlhf"] if stage not in ("pretrain", "merge") else []
    tags.append(method.lower() if stage == "ppo" else stage)
    kind = "text-classification" if stage == "reward" else "text-generation"
    head = ["---", *([f"language: {json.dumps([code])}"] if code else [])]
    head += ["library_name: transformers", f"pipeline_tag: {kind}"]
    head += [f"tags: {json.dumps(tags)}", "---", ""]
    title = STAGES[stage].format(method)
    lines = [f"# {name}: {title}" if name else f"# {title.capitalize()}", "", "## How it was made", ""]
    lines += [f"- {what}: {_code(value)}" for what, value in inputs.items() if value is not None]
    if "kept" in result:
        lines.append(f"- weights {in_words(result['kept'])}")
    lines.append("")
    if shown := [key for key in _SHOWN if settings.get(key) is not None]:
        lines += ["| setting | value |", "|---|---|", *(f"| {key} | {_code(settings[key])} |" for key in shown), ""]
    if stage != "merge":
        lines += ["## Scores", "", "| measured | value |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in result.items() if _is_number(value)]
        lines += ["", "These are this run's own measurements on its own data, not a benchmark.", ""]
    return "\n".join([*head, *lines, *_use(stage, name)])


def _use(stage: str, name: str) -> list[str]:
    if stage == "reward":
        use = [
            f"Scoring responses to instructions in {name}: one number for a prompt with its response, higher is",
            "better, comparable between responses to the same prompt. `AutoModelForSequenceClassification` loads it.",
        ]
        limits = ["It prefers what its rankings preferred, their mistakes included, and can be fooled by a policy."]
    elif stage in ("pretrain", "merge"):
        use = [
            f"Continuing text{f' in {name}' if name else ''}, for research, and as a base to fine-tune.",
            '`pipeline("text-generation")` loads it.',
        ]
        limits = ["Text can be wrong, invented or harmful. Its safety has not been tested."]
    else:
        use = [
            f'Following single instructions in {name}, for research. `pipeline("text-generation")` loads it and',
            "renders chats in the prompt format it was trained with; it was not trained on earlier turns of a chat.",
        ]
        limits = ["Answers can be wrong, invented or harmful. Its safety has not been tested."]
    if stage == "pretrain":
        limits += ["It may have lost some of the languages that its base model knew and this text lacks."]
    elif stage != "merge":
        limits += ["Other languages, and prompts longer than `max_length` tokens, are outside what it was trained on."]
    limits += ["The licences and faults of its base model and of its data carry over to it."]
    return ["## Intended use", "", *use, "", "## Limits", "", *(f"- {line}" for line in limits), ""]


def _code(value: object) -> str:
    """Put a value in backticks, on one line, without a bar that would end the cell."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '/')}`"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
