"""Checks that PPO's settings, data and ranks fit together, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from engine.base.errors import UserError
from engine.generation.kv_cache import PAGE_SIZE, pages_for
from engine.settings import PPOSettings
from engine.text.encoding import Prompt


def check_iteration(ppo: PPOSettings, batch_size: int) -> None:
    """UserError for an iteration of one rollout or of part of a prompt's, and one too large for the KL controller."""
    samples = ppo.samples_per_prompt
    if batch_size % samples:
        raise UserError(
            f"--batch-size is {batch_size}, --samples-per-prompt is {samples}: the first counts all responses, give a "
            f"multiple of the second, such as {-(-batch_size // samples) * samples}"
        )
    if batch_size < 2:
        raise UserError(f"--batch-size is {batch_size}: PPO compares the rollouts of an iteration: give 2 or more")
    if ppo.kl_controller == "adaptive" and not ppo.kl_horizon >= batch_size:
        raise UserError(
            f"--kl-horizon is {ppo.kl_horizon}, --batch-size is {batch_size}: an iteration could change the KL weight "
            "by more than a fifth, raise --kl-horizon to the batch size or above"
        )


def check_rollouts(prompts: int, batch_size: int, ranks: int, samples: int = 1) -> None:
    """UserError unless each iteration has a prompt for every rank, and at least two rollouts in all."""
    if min(prompts, batch_size // samples) < ranks:
        raise UserError(
            f"{prompts} prompts in iterations of {batch_size // samples} leave one of {ranks} ranks without any: give "
            "more prompts, a larger --batch-size, or fewer ranks"
        )
    if prompts * samples < 2:
        raise UserError("there is one prompt: PPO compares the rollouts of an iteration, give 2 prompts or more")


def check_cache(ppo: PPOSettings, *prompts: Sequence[Prompt]) -> None:
    """UserError if --cache-tokens has no room for the longest prompt with its longest response."""
    longest = max(len(prompt.tokens) for of_file in prompts for prompt in of_file)
    # Besides the sequence: the half-filled page of a prompt with samples to come, and a GPU's spare page.
    needed = (pages_for(longest + ppo.max_new_tokens) + 2) * PAGE_SIZE
    if ppo.cache_tokens is not None and ppo.cache_tokens < needed:
        raise UserError(
            f"--cache-tokens is {ppo.cache_tokens}: a prompt of {longest} tokens with --max-new-tokens "
            f"{ppo.max_new_tokens} needs {needed}, give that or more, for each sequence generated at once"
        )


def check_warmup(ppo: PPOSettings, iterations: int) -> None:
    """UserError if the critic's warm-up leaves the policy no iteration."""
    if ppo.critic_warmup >= iterations:
        raise UserError(
            f"--critic-warmup is {ppo.critic_warmup}, the run has {iterations} iterations: the policy would never be "
            "trained, lower the first or raise --max-steps or --epochs"
        )


def check_measures(ppo: PPOSettings, heldout: Sequence[Prompt], file: object) -> None:
    """UserError if --keep-best names exact_match and a held-out prompt has no output to compare with."""
    lacking = [prompt.id for prompt in heldout if not prompt.output]
    if ppo.keep_best == "exact_match" and lacking:
        raise UserError(
            f"--keep-best is exact_match, and record {lacking[0]} of {file} has no output (as {len(lacking)} of "
            f"{len(heldout)}): give --keep-best score, or records with outputs"
        )
