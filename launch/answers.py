"""Answer the prompts of generation tasks, check the answers and append their records: part of launch/evaluate.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.cli.console import Console
from engine.cli.interrupt import Interrupt
from engine.distributed.world import World
from engine.generation.generate import Request
from engine.generation.shards import LENGTH, SavedResponse
from engine.run.template_choice import Choice, check_template, choose_template
from engine.settings import ResponseSettings, SampleSettings
from engine.text.eos import eos_ids_of
from evaluation.answers.build import TaskQuestions
from evaluation.answers.records import answer_record
from evaluation.checks.chrf import PACKAGE
from evaluation.checks.toxicity import Classifier
from evaluation.data.questions import Answer
from evaluation.results.records import RecordFile
from evaluation.settings import AnswerSettings, EvaluateSettings
from evaluation.tasks import AnswerTask
from launch.sample_rank import Progress, sample, share


@dataclass(frozen=True)
class Answerer:
    """Answers prompts with a model: its settings, template, end tokens and, for toxicity, the classifier."""

    model: Any
    tokenizer: Any
    settings: EvaluateSettings
    how: AnswerSettings
    choice: Choice
    eos_ids: tuple[int, ...]
    max_length: int
    classifier: Classifier | None

    @property
    def seed(self) -> int:
        return self.settings.seed or 0

    @property
    def max_prompt_length(self) -> int:
        return self.max_length - self.how.max_new_tokens

    def about(self, task: AnswerTask) -> dict[str, Any]:
        """Return what a task's answers depend on, for the manifest, without what a model brings along."""
        how = self.how
        about: dict[str, Any] = {"num_answers": how.num_answers, "max_new_tokens": how.max_new_tokens}
        about |= {"temperature": how.temperature, "top_p": how.top_p, "stop": how.stop}
        if task.requires and find_spec(PACKAGE):
            about[PACKAGE] = version(PACKAGE)
        if task.is_classified and self.classifier:
            about |= {"toxicity_model_sha256": self.classifier.sha256, "toxicity_label": self.classifier.label}
        return about

    def of_model(self) -> dict[str, Any]:
        """Return what the model brings along, for the manifest: the template, and the tokens that end an answer."""
        return {"template": self.choice.template.record(), "eos_ids": list(self.eos_ids)}

    def responses(self) -> tuple[ResponseSettings, SampleSettings]:
        """Return the settings of launch/sample.py that sample these answers."""
        s, how = self.settings, self.how
        return (
            ResponseSettings(
                num_responses=how.num_answers, max_new_tokens=how.max_new_tokens, max_length=self.max_length,
                stop=how.stop, temperature=how.temperature, top_p=how.top_p, seed=self.seed,
            ),
            SampleSettings(lang=s.lang, model=s.model, data=s.data_dir, output="", slots=how.slots),
        )  # fmt: skip


def check_answers(tasks: Sequence[AnswerTask], how: AnswerSettings) -> None:
    """UserError for settings of generated answers that are wrong whatever the model."""
    check_template(how.template)
    classified = next((task for task in tasks if task.is_classified), None)
    if classified and how.toxicity_model is None:
        raise UserError(f"task {classified.name} needs a classifier of toxic text: give --toxicity-model DIR")


def make_answerer(
    model: Any,
    tokenizer: Any,
    settings: EvaluateSettings,
    how: AnswerSettings,
    max_length: int,
    tasks: Sequence[AnswerTask],
) -> Answerer:
    """Choose the template and load the classifier. UserError if --max-new-tokens leaves no room for a prompt."""
    if how.max_new_tokens >= max_length:
        raise UserError(
            f"--max-new-tokens is {how.max_new_tokens}, a sequence has {max_length} tokens: lower it, or raise "
            "--max-length"
        )
    classifier = None
    if any(task.is_classified for task in tasks):
        classifier = Classifier(Path(how.toxicity_model or ""), how.toxicity_label)
    choice = choose_template(how.template, settings.model, tokenizer)
    eos_ids = eos_ids_of(settings.model, tokenizer, model.vocab_size)
    return Answerer(model, tokenizer, settings, how, choice, eos_ids, max_length, classifier)


def answer(answerer: Answerer, built: TaskQuestions, file: RecordFile, world: World, console: Console) -> None:
    """Answer this rank's share of the questions without stored answers, and append their records."""
    task, name = built.task, f"{built.task.name}.{built.lang}"
    done = file.done(task.metrics)
    world.barrier()  # no rank may append before all have read the stored records
    left = {a.question.index: a for a in built.asked if a.question.index not in done}
    if done:
        console.say(f"  {name}: {len(done):,} documents are already answered, {len(left):,} are left")
    response_settings, sample_settings = answerer.responses()
    requests = [
        Request(asked.tokens, index, k, answerer.how.max_new_tokens)
        for index, asked in left.items()
        for k in range(answerer.how.num_answers)
    ]
    mine = share(requests, world.size)[world.rank]
    found: dict[int, list[SavedResponse]] = {}
    began = time.monotonic()
    with (
        Interrupt("the evaluation stops after this step" if world.is_first else "") as interrupt,
        file.append(world.rank) as write,
        console.bar(len(mine), name, "answer") as bar,
    ):
        for saved in sample(
            answerer.model, answerer.tokenizer, mine, response_settings, sample_settings, answerer.eos_ids,
            Progress(console, bar), interrupt,
        ):  # fmt: skip
            of_prompt = found.setdefault(saved.prompt_id, [])
            of_prompt.append(saved)
            if len(of_prompt) == answerer.how.num_answers:
                answers = _answers(found.pop(saved.prompt_id), answerer.classifier if task.is_classified else None)
                write(answer_record(task, built.lang, left[saved.prompt_id], answers))
    world.barrier()
    if left:
        seconds = time.monotonic() - began
        console.say(f"  {name}: {len(left):,} prompts answered in {seconds:.1f} s")


def _answers(responses: list[SavedResponse], classifier: Classifier | None) -> list[Answer]:
    """Return the answers in the order of their samples."""
    responses = sorted(responses, key=lambda saved: saved.sample_id)
    toxicity = classifier([saved.text for saved in responses]) if classifier else [None] * len(responses)
    return [Answer(r.text, r.num_tokens, r.end != LENGTH, t) for r, t in zip(responses, toxicity, strict=True)]
