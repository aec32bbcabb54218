"""Build documents from the records of a task by a protocol: format, tokenize and shorten them to fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.base.languages import get_language
from evaluation.data.files import Data, Source
from evaluation.data.items import Item, Unlabelled
from evaluation.data.prompt_words import ENGLISH, PromptWords, words_of
from evaluation.data.scripts import check_script
from evaluation.protocols import Protocol
from evaluation.protocols.draws import Plan, Pool
from evaluation.protocols.encodings import Encode, Encoded
from evaluation.scoring.documents import Choice, Document, TaskDocuments
from evaluation.tasks import Form, Task


def build(
    task: Task,
    lang: str,
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    protocol: Protocol,
    max_length: int,
    *,
    shots: int | None = None,
    shared_shots: bool = False,
    limit: int | None = None,
    seed: int | None = None,
    split: str | None = None,
    skip_bad: bool = False,
) -> TaskDocuments:
    """Return the documents of a task in one language.

    max_length    most tokens that the model takes; context + continuation may have one more, as the last is not fed
    shots         solved questions before each question; None: the protocol's number for this task
    shared_shots  the same shots for every question (strict only)
    limit         keep the first documents in the protocol's order, per task or, if the form has by_subject, per subject
    seed          seed of the draws; None: the protocol's
    split         the part to evaluate instead of the task's, such as "validation" without a test file
    skip_bad      leave out and count bad records and questions that do not fit in max_length

    UserError for a bad record, with its file, line and field, and for a prompt or a choice that does not fit.
    """
    get_language(lang)
    form = task.form(protocol.name, lang)
    num_shots = form.shots if shots is None else shots
    _check(task, protocol, form, num_shots, shared_shots, limit)
    counts: Counter[str] = Counter()
    sources: list[Source] = []

    items = read_items(task, lang, data, split or task.part, skip_bad, counts, sources)
    pool = Pool("", ())
    if num_shots:
        part = _shots_part(task, lang, data, form)
        same = part == (split or task.part)
        pool = Pool(part, items if same else read_items(task, lang, data, part, skip_bad, counts, sources))
    plan = Plan(
        task=task.name,
        items=items,
        pool=pool,
        form=form,
        shots=num_shots,
        limit=limit,
        seed=protocol.seed if seed is None else seed,
        shared=shared_shots,
    )
    script = check_script(get_language(lang), sources[0].name, (item.question for item in items))
    words = words_of(lang, script) if protocol.own_words else ENGLISH
    writer = _Writer(task, lang, form, protocol, words, protocol.encode(tokenizer), max_length, num_shots, counts)
    documents = []
    for item, drawn in protocol.draw(plan):
        try:
            documents.append(writer.write(item, drawn))
        except UserError:
            if not skip_bad:
                raise
            counts["bad_records"] += 1
    if not documents:
        raise UserError(f"{sources[0].name}: no document fits in {max_length} tokens: raise --max-length")
    empty = next((document.choices[0].context_ids[0] for document in documents if not document.prompt), None)
    return TaskDocuments(
        task=task,
        lang=lang,
        protocol=protocol.name,
        shots=num_shots,
        documents=documents,
        counts=dict(+counts),
        sources=tuple(sources),
        empty_context=None if empty is None else tokenizer.convert_ids_to_tokens(empty),
    )


def check_files(
    task: Task, lang: str, data: Data, protocol: Protocol, shots: int | None = None, split: str | None = None
) -> None:
    """UserError for a file that `build` would not find. Needs no model or tokenizer. Arguments as in `build`."""
    form = task.form(protocol.name, lang)
    if not data.has(task.folder, lang, split or task.part):
        data.read(task.folder, lang, split or task.part)  # raises with the name of the missing file
    if form.pools and (form.shots if shots is None else shots):
        _shots_part(task, lang, data, form)


def _shots_part(task: Task, lang: str, data: Data, form: Form) -> str:
    """Return the first part that has solved questions. UserError if there is none."""
    for part in form.pools:
        if data.has(task.folder, lang, part):
            return part
    instead = "give --shots 0 to evaluate without its records as shots"
    raise UserError(data.missing_message(task.folder, lang, form.pools[0], instead))


def read_items(
    task: Task, lang: str, data: Data, part: str, skip_bad: bool, counts: Counter[str], sources: list[Source]
) -> list[Item]:
    """Return the items of one part in file order. Count left-out records in `counts`, add the file to `sources`.

    UserError for a bad record (unless skip_bad), for a file in the script of another language, and for a file without
    usable records.
    """
    records = data.read(task.folder, lang, part)
    sources.append(records.source)
    items = []
    rows = [row for row in records.rows if task.keep is None or task.keep(row[1], lang)]
    for index, (place, record) in enumerate(rows):
        try:
            items.append(task.read(record, place, index))
        except Unlabelled:
            counts["unlabelled"] += 1
        except UserError:
            if not skip_bad:
                raise
            counts["bad_records"] += 1
    if not items:
        raise UserError(
            f"{records.source.name}: no record of {len(records.rows)} can be used: give a file with answers"
        )
    check_script(get_language(lang), records.source.name, (item.question for item in items))
    return items


def _check(task: Task, protocol: Protocol, form: Form, num_shots: int, shared_shots: bool, limit: int | None) -> None:
    if num_shots < 0:
        raise UserError(f"--shots {num_shots} is below 0: give 0 or more")
    if num_shots and not form.pools:
        raise UserError(f"--shots {num_shots}: task {task.name} has no part to draw shots from: leave --shots out")
    if form.fixed_shots and num_shots != form.shots:
        raise UserError(
            f"--shots {num_shots}: {protocol.name} runs {task.name} with {form.shots} shots: leave --shots out for it"
        )
    if shared_shots and not protocol.own_words:
        raise UserError(f"--shared-shots is no part of protocol {protocol.name}: choose --protocol strict")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is below 1: give 1 or more, or leave it out to evaluate all documents")


class _Writer:
    """Makes the documents of one task: formats the text, tokenizes it, shortens it to fit and counts special cases."""

    def __init__(
        self,
        task: Task,
        lang: str,
        form: Form,
        protocol: Protocol,
        words: PromptWords,
        encode: Encode,
        max_length: int,
        num_shots: int,
        counts: Counter[str],
    ) -> None:
        self.task, self.lang, self.form, self.protocol, self.words = task, lang, form, protocol, words
        self.gap = words.gap if form.gap is None else form.gap
        self.encode, self.max_length, self.num_shots, self.counts = encode, max_length, num_shots, counts
        # Keep one int object per token id: each further object of a large id would cost 28 bytes.
        self.interned: dict[int, int] = {}

    def write(self, item: Item, shots: Sequence[Item]) -> Document:
        options, truth = self.form.options(item), self.form.truth(item)
        continuations = [self.gap + option for option in options]
        blocks = [*(self._shot(shot) for shot in shots), self.form.question(item, self.words)]
        if header := self.form.header(item):
            blocks[0] = header + blocks[0]
        dropped, encoded = 0, self.encode(blocks, continuations)
        if self.protocol.drops_shots and self._excess(encoded) > 0:
            dropped = self._num_to_drop(item, blocks, continuations)
            blocks = blocks[dropped:]
            encoded = self.encode(blocks, continuations)
        choices = self._choices(item, options, continuations, encoded, dropped > 0)
        self._count(item, options, len(shots), dropped, encoded)
        return Document(
            task=self.task.name,
            lang=self.lang,
            id=item.id,
            index=item.index,
            gold=tuple(map(float, truth)) if "mc2" in self.task.metrics else truth.index(1),
            choices=choices,
            shot_ids=tuple(shot.id for shot in shots[dropped:]),
            prompt="".join(blocks),
            subject=item.subject,
            subset=item.subset,
        )

    def _shot(self, item: Item) -> str:
        answer = self.form.options(item)[self.form.truth(item).index(1)]
        return f"{self.form.question(item, self.words)}{self.gap}{answer}\n\n"

    def _excess(self, encoded: Encoded) -> int:
        """Return how many tokens of the longest choice do not fit. The last token of a continuation is never fed."""
        return max(len(context) + len(ids) for context, ids in encoded.pairs) - self.max_length - 1

    def _num_to_drop(self, item: Item, blocks: list[str], continuations: list[str]) -> int:
        """Return the fewest shots to drop so that the rest fits. UserError if the question alone does not fit."""
        low, high = 1, len(blocks) - 1
        excess = self._excess(self.encode(blocks[high:], continuations))
        if excess > 0:
            raise UserError(
                f"{item.place}: the question has {excess} tokens more than the {self.max_length} that fit, even "
                f"without shots: raise --max-length, or leave it out with --bad-records skip"
            )
        while low < high:
            middle = (low + high) // 2
            if self._excess(self.encode(blocks[middle:], continuations)) > 0:
                low = middle + 1
            else:
                high = middle
        return high

    def _choices(
        self, item: Item, options: Sequence[str], continuations: Sequence[str], encoded: Encoded, dropped: bool
    ) -> tuple[Choice, ...]:
        contexts: dict[int, tuple[int, ...]] = {}
        choices = []
        for option, text, (context, ids) in zip(options, continuations, encoded.pairs):
            if not context:
                raise UserError(f"{item.place}: the text before the choices has no tokens: fix the record")
            if not ids or len(ids) > self.max_length:
                raise UserError(
                    f"{item.place}: the choice {option!r:.60} has {len(ids)} tokens under {self.protocol.name}, "
                    f"1 to {self.max_length} can be scored: fix the record, or choose --protocol strict"
                )
            start = max(0, len(context) + len(ids) - self.max_length - 1)
            if start not in contexts:
                contexts[start] = self._intern(context[start:])
            cut = dropped or start > 0
            choices.append(Choice(contexts[start], self._intern(ids), text, len(option), len(option.encode()), cut))
        return tuple(choices)

    def _intern(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.interned.setdefault(token, token) for token in ids)

    def _count(self, item: Item, options: Sequence[str], num_drawn: int, dropped: int, encoded: Encoded) -> None:
        excess = max(0, self._excess(encoded))
        self.counts["documents"] += 1
        self.counts["prompt_tokens"] += max(len(context) for context, _ in encoded.pairs)
        self.counts["cut_documents"] += excess > 0
        self.counts["cut_tokens"] += excess
        self.counts["documents_with_dropped_shots"] += dropped > 0
        self.counts["dropped_shots"] += dropped
        self.counts["documents_with_fewer_shots"] += num_drawn < self.num_shots
        self.counts["equal_options"] += any(len(set(texts)) < len(texts) for texts in (item.options, options))
        self.counts["emptied_options"] += "" in options
        self.counts["resplit"] += encoded.resplit
