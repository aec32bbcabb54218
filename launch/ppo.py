"""PPO from the embedded default or your own model, reward and prompts: `deepspeed launch/ppo.py --lang ne`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.documents import read_documents
from engine.base.errors import UserError
from engine.base.mixture import Source, names_of
from engine.base.records import read_instructions
from engine.cli.parse import Parsed, main
from engine.models import save_model
from engine.planning.disk import num_trained
from engine.run.folder import read_result
from engine.run.kept import in_words
from engine.run.model_card import method_name, write_card
from engine.run.template_choice import Choice, check_reward_template, check_template
from engine.settings import (
    BatchSettings,
    OptimizerSettings,
    PPOSettings,
    Reward,
    RunSettings,
    check_room,
    parse_rewards,
    split_of,
)
from engine.text.encoding import Prompt, encode_prompts
from engine.text.eos import eos_ids_of
from engine.training.estimators import estimator_of
from engine.training.heldout import Estimate, compared, shown, titles
from engine.training.ppo import PPOTrainer
from engine.training.ppo_checks import check_cache, check_iteration, check_measures, check_rollouts, check_warmup
from engine.training.ppo_plan import Plan
from engine.training.pretraining import Pretraining
from engine.training.scorers import RewardModelScorer, check_outputs, check_reward, describe, try_scorer
from engine.training.weighted_scorers import Scorer, each, load_rewards
from launch import reward, sft
from launch.common import (
    Job,
    check_files,
    checked_reader,
    embedded_data,
    finished_before,
    open_job,
    parse_stage,
    stage_model,
)
from launch.lengths import fit_job
from launch.replay import replay_asked
from launch.sources import encode_sources, read_sources


def job(argv: Sequence[str]) -> None:
    """Train a model with PPO. What the flags do not give comes from the embedded default, made first if needed."""
    if replay_asked("ppo", argv):
        return
    run(parse_stage("ppo", argv, "PPO on the top layers"))


def run(settings: Parsed) -> None:
    """Train unless the run is complete, and print the results of all stages."""
    run_settings, optimizer, batch, ppo = settings
    job = open_job("ppo", settings)
    if run_settings.model and not ppo.reward:
        raise UserError("--model is given without --reward: give the directory of a reward model, or module:function")
    if not finished_before(job):
        train(job, run_settings, optimizer, batch, ppo)
    show(job, run_settings)


def train(
    job: Job, run_settings: RunSettings, optimizer: OptimizerSettings, batch: BatchSettings, ppo: PPOSettings
) -> None:
    """Check all inputs, run earlier stages if needed, then train, save and evaluate."""
    check_room(ppo.max_new_tokens, batch.max_length)
    check_iteration(ppo, batch.batch_size)
    estimator_of(ppo.advantage)
    texts = [list(read_documents(source.path)) for source in ppo.text_sources]
    check_template(batch.template)
    has_heldout = run_settings.eval_data is not None or not run_settings.sources
    ppo.check_heldout(has_heldout, "--eval-data")
    if ppo.eval_every and not has_heldout:
        raise UserError(
            f"--eval-every is {ppo.eval_every} and no prompt is held out: give --eval-data, or leave it out"
        )
    for one in ppo.rewards:
        check_reward(one.spec)
    read_prompts = checked_reader(job, batch, partial(read_instructions, require_output=False))
    if run_settings.model is None:
        check_files(read_prompts, *(source.path for source in run_settings.sources), run_settings.eval_data)
    model_dir = run_settings.model or stage_model(run_settings, "sft", sft.run, job, batch.template)
    rewards = ppo.rewards
    if not rewards:
        rewards = parse_rewards([str(stage_model(run_settings, "reward", reward.run, job, batch.template))])
    sources, checks_file = run_settings.sources, run_settings.eval_data
    if not sources:
        embedded = embedded_data(run_settings, job)
        sources, checks_file = (Source(str(embedded / "rl.jsonl")),), checks_file or embedded / "heldout.jsonl"
    batch, ppo = fit_job(job, model_dir, batch, ppo)
    room = batch.max_length - ppo.max_new_tokens
    model, tokenizer = job.load(model_dir, ppo)
    split = split_of(ppo.top_layers, model.num_layers)
    eos_ids = eos_ids_of(model_dir, tokenizer, model.vocab_size)
    choice = job.choose_template(batch.template, model_dir, tokenizer)
    prompts, mixture = encode_sources(
        sources, read_sources(read_prompts, sources),
        lambda part: encode_prompts(part, tokenizer, choice.template, room, batch.truncate),
    )  # fmt: skip
    checks = []
    if checks_file:
        checks = encode_prompts(read_prompts(checks_file), tokenizer, choice.template, room, batch.truncate)
    check_measures(ppo, checks, checks_file)
    text = pretraining_of(ppo, texts, tokenizer, batch.max_length, run_settings.seed) if texts else None
    scorer = load_rewards(rewards, model, split, tokenizer, batch.tokens_per_microbatch, ppo.reward_offload)
    notes = check_scorers(rewards, scorer, choice, tokenizer, {names_of(sources): prompts, checks_file: checks})
    for of in each(scorer):
        try_scorer(of, model, split, prompts[0], tokenizer)
    check_rollouts(len(prompts), batch.batch_size, job.world.size, ppo.samples_per_prompt)
    check_cache(ppo, prompts, checks)
    seed, ranks, most = run_settings.seed, job.world.size, run_settings.max_steps
    check_warmup(ppo, len(Plan.of(prompts, batch, ppo, seed, ranks, most, mixture).steps))

    trained = num_trained(model, split) * (2 if ppo.critic == "separate" else 1)
    samples = ppo.samples_per_prompt
    rollouts = min(batch.batch_size, samples * len(prompts))
    sizes = {"rollouts": rollouts, "tokens": batch.max_length, "rewards": len(rewards)}
    disk = job.disk(samples * len(prompts), batch, model, trained, **sizes)
    inputs = {
        "policy before PPO": model_dir, "reward": ", ".join(map(str, rewards)), "prompts": names_of(sources),
    }  # fmt: skip
    inputs |= {"pretraining text": names_of(text.sources)} if text else {}
    exported = job.try_export(model, inputs, tokenizer, choice.template, eos_ids)
    for of in each(scorer):
        if of.note:
            job.console.say(of.note)
    job.run.start()
    context = job.context(run_settings, optimizer, batch, ppo, mixture)
    trainer = PPOTrainer(model, tokenizer, eos_ids, prompts, scorer, context, checks, text)
    steps = trainer.steps
    job.header(f"{method_name(ppo.advantage)} in {job.language.name}", {
        "policy": f"{model_dir} (top {ppo.top_layers} of {model.num_layers} layers trained)",
        **reward_lines(rewards, scorer, trainer.scores.clips, notes),
        "data": f"{names_of(sources)} ({len(prompts):,} prompts)",
        **mixture.rows(steps),
        "template": choice.shown,
        "plan": f"{len(steps)} iterations of {len(steps[0])} rollouts of up to {ppo.max_new_tokens} tokens"
        + (f", {samples} for each prompt" if samples > 1 else ""),
        "update": f"{ppo.ppo_epochs} PPO epochs, {ppo.minibatch_size} rollouts a step",
        **(text.rows(trainer.plan.updates(ppo.critic_warmup)) if text else {}),
        "disk": disk,
    }, len(steps))  # fmt: skip
    result = trainer.train()
    with trainer.checkpoints.finishing():
        with trainer.checkpoints.part():
            if job.world.is_first:
                save_model(model, job.run.model_dir, exported, eos_ids=eos_ids)
        if checks:
            before, after = trainer.heldout.before, trainer.answers_after()
            result["heldout"] = compared(before, after)
            for name in ("exact_match", "wrong_language"):
                if found := result["heldout"].get(name):
                    result |= {f"{name}_before": found["before"][0], name: found["after"][0]}
            job.run.sample(trainer.exported, [
                {"prompt": p.text, "response": a[0], "before_ppo": b[0], "expected": p.output}
                for p, a, b in zip(checks[:20], after.texts, before.texts)
            ])  # fmt: skip
        if job.world.is_first:
            write_card(job.run.model_dir, "ppo", job.card_settings, inputs, result, tokenizer, eos_ids)
        job.run.finish(result)


def check_scorers(
    rewards: Sequence[Reward], scorer: Scorer, choice: Choice, tokenizer: Any, prompts: Mapping[Any, Sequence[Prompt]]
) -> list[str]:
    """Return a note on each reward's prompt template for the header, "" for functions.

    UserError for a reward model with another template than the policy's, and for a function of the records' outputs if
    one of `prompts` (by their file) has none.
    """
    notes = []
    for one, of in zip(rewards, each(scorer)):
        is_model = isinstance(of, RewardModelScorer)
        notes.append(f", {check_reward_template(one.spec, choice, tokenizer)}" if is_model else "")
        for file, of_file in prompts.items():
            check_outputs(of, of_file, file)
    return notes


def reward_lines(
    rewards: Sequence[Reward], scorer: Scorer, clips: Sequence[float | None], notes: Sequence[str]
) -> dict[str, str]:
    """Return the header's line of each reward: with its weight and its name in the metrics if there are several."""
    lines = {}
    for one, of, clip, note in zip(rewards, each(scorer), clips, notes):
        several = len(rewards) > 1 or one.weight != 1
        weight = f", weight {one.weight:g}" if several else ""
        lines[f"reward {one.name}" if several else "reward"] = f"{one.spec} ({describe(of, clip)}{note}{weight})"
    return lines


def pretraining_of(
    ppo: PPOSettings, texts: Sequence[Sequence[str]], tokenizer: Any, max_length: int, seed: int
) -> Pretraining:
    """Return the pretraining text of the updates; `texts` are the documents of each file of --ptx-data."""
    coef, tokens = ppo.ptx_coef or 1.0, ppo.ptx_tokens or 1024
    return Pretraining.of(ppo.text_sources, texts, tokenizer, max_length, seed, coef, tokens)


def show(job: Job, run_settings: RunSettings) -> None:
    """Print all stages in one table, and the next command."""
    result, rows = job.run.result, []
    if run_settings.model is None:
        stages = Path(run_settings.runs, run_settings.lang)
        sft_result, reward_result = read_result(stages / "sft") or {}, read_result(stages / "reward") or {}
        if sft_result:
            rows.append(["SFT loss", f"{sft_result['loss_first']:.3f}", f"{sft_result['loss_last']:.3f}"])
        if {"accuracy_before", "accuracy"} <= reward_result.keys():
            before = f"{reward_result['accuracy_before']:.1%}"
            rows.append(["reward model, held-out pairs right", before, f"{reward_result['accuracy']:.1%}"])
    rows += [
        ["PPO score", f"{result['score_first']:.3f}", f"{result['score_last']:.3f}"],
        ["PPO KL to the reference, nats per response", f"{result['kl_first']:.3f}", f"{result['kl_last']:.3f}"],
    ]
    heldout = result.get("heldout", {})
    for name, title in titles(heldout).items():
        rows.append([title, *(shown(name, Estimate(*heldout[name][when])) for when in ("before", "after"))])
    job.console.say()
    job.console.table([f"{job.language.name}: {result['seconds']:.0f} s of PPO", "first", "last"], rows)
    if "stopped" in result:
        job.console.say(f"\n  {result['stopped']}")
    if "kept" in result:
        job.console.say(f"\n  {in_words(result['kept'])}")
    job.console.say(f"\n  model    {job.run.model_dir}")
    job.console.say(f"  answers  {job.run.path / 'samples.jsonl'}")
    job.console.say(f"  curves   {job.curves}")
    job.console.say(
        f"  report   python -m engine.report {job.run.path.parent if job.run.path.name == 'ppo' else job.run.path}"
    )
    job.console.say(
        f"  go on    deepspeed launch/sample.py --lang {run_settings.lang} --model {job.run.model_dir} "
        "--data FILE --num-responses 4 --output responses.jsonl"
    )


if __name__ == "__main__":
    main(job)
