"""Translating the texts of one record: into pieces, asked for as JSON objects, checked, and put together again."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from datagen.api.chat import Ask, Rejected, Reply
from datagen.api.pricing import estimate_tokens
from datagen.text.checks import translation_fault
from datagen.text.kept_parts import is_code, split_parts
from datagen.text.length_ratios import LengthRatios
from datagen.text.refusals import is_refusal
from datagen.translation.answer_json import parse_answer_object
from datagen.translation.splitting import split_text
from engine.base.errors import UserError
from engine.base.languages import Language
from engine.base.strict_json import reason_of

TEMPLATE_NAMES = {"needed": ("language", "record"), "optional": ("native_name", "note")}
# Close to the likeliest wording; above 0, so that an answer that is asked for again may be another one.
TEMPERATURE = 0.3
MAX_TOKENS = 4096  # of an answer
# Of a request's texts. In Telugu, or Malayalam, a text has up to eight times as many tokens as in English.
LIMIT_TOKENS = 500

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Translator:
    """Translates English texts into one language.

    template      with the names of TEMPLATE_NAMES
    limit_tokens  of the texts of one request; longer records are split (see `splitting`)
    is_checked    False for a dry run: what the simulator answers says nothing about a model, and an answer that it
                  fails would end the record before all its requests are counted
    """

    language: Language
    template: string.Template
    limit_tokens: int = LIMIT_TOKENS
    is_checked: bool = True

    async def translate(self, texts: Texts, ask: Ask, note: str = "", keeps_english: bool = False) -> dict[str, str]:
        """The same keys with translated values. Empty texts are not sent, so that nothing can be made up for them.

        note: a line for the template's $note. keeps_english: the texts are about English, parts of them stay as they
        are. Rejected where an answer fails a check (see `checks`).
        """
        if not any(map(str.isalpha, "".join(texts.values()))):
            return dict(texts)
        pieces = {name: split_text(text, self.limit_tokens) for name, text in texts.items() if text.strip()}
        translated: dict[str, list[str]] = {name: [] for name in pieces}
        parts = ((name, text) for name, split in pieces.items() for text in split.texts)
        for part in _batches(parts, self.limit_tokens):
            answer = await self._ask(part, ask, note, keeps_english)
            for name, text in answer.items():
                translated[name].append(text)
        return {name: pieces[name].join(translated[name]) if name in pieces else text for name, text in texts.items()}

    async def _ask(self, texts: Texts, ask: Ask, note: str, keeps_english: bool) -> dict[str, str]:
        prompt = self.template.substitute(
            language=self.language.name,
            native_name=self.language.native_name,
            note=note,
            record=json.dumps(texts, ensure_ascii=False, indent=1),
        )
        reply = await ask([{"role": "user", "content": prompt}], temperature=TEMPERATURE)
        answer = parse_texts(reply, texts)
        for name, source in texts.items() if self.is_checked else ():
            if fault := translation_fault(source, answer[name], self.language, keeps_english):
                raise Rejected(f"{fault} (in {name})", reply)
        return answer


def load_checks(language: Language) -> None:
    """Loads what the checks need, before anything is asked. UserError where it cannot be loaded.

    That is the model that tells languages apart: it is unpacked into the temporary folder the first time it is used.
    """
    try:
        translation_fault("", "", language)
    except OSError as error:
        advice = "make room in the temporary folder, or name another in TMPDIR"
        raise UserError(f"the language check cannot unpack its model ({reason_of(error)}): {advice}") from error


def parse_texts(reply: Reply, texts: Texts) -> dict[str, str]:
    """The answer's object, in the order of the texts' keys: exactly those keys, with strings, empty where they are.

    Rejected, with the reason, for anything else: an answer that was cut off, a refusal, text that is no JSON object.
    """
    answer = parse_object(reply)
    if fault := fault_of_object(answer, texts):
        raise Rejected(fault, reply)
    return {name: str(answer[name]) for name in texts}


def parse_object(reply: Reply) -> dict[str, object]:
    """The one JSON object of a complete answer; otherwise Rejected."""
    if reply.fault:
        raise Rejected(reply.fault, reply)
    try:
        return parse_answer_object(reply.text)
    except ValueError as error:
        refused = is_refusal(reply.text)
        raise Rejected(f"refusal: {reply.text.strip()!r:.80}" if refused else f"JSON: {error}", reply) from None


def fault_of_object(answer: Mapping[str, object], texts: Texts) -> str | None:
    """Whether an answer has other keys than the texts, values that are no texts, or others that are empty.

    An added key that holds nothing is no fault: many models give the `input` back that was not sent for being empty.
    """
    added = {name for name in answer.keys() - texts.keys() if not _holds_nothing(answer[name])}
    for what, names in (("missing", texts.keys() - answer.keys()), ("added", added)):
        if names:
            return f"keys: {what} {sorted(names)[0]!r:.40}"
    for name, source in texts.items():
        text = answer[name]
        if not isinstance(text, str):
            return f"keys: {name!r} is no text"
        if bool(text.strip()) != bool(source.strip()):
            return f"empty: {name!r} is {'filled' if text.strip() else 'empty'} in the answer, not in the record"
    return None


def _holds_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _batches(parts: Iterable[tuple[str, str]], limit_tokens: int) -> Iterator[dict[str, str]]:
    """Parts of fields, in order, together as far as the limit goes; never two of one field."""
    batch: dict[str, str] = {}
    used = 0
    for name, text in parts:
        tokens = estimate_tokens(text)
        if batch and (name in batch or used + tokens > limit_tokens):
            yield batch
            batch, used = {}, 0
        batch[name] = text
        used += tokens
    if batch:
        yield batch


def check_lengths(ratios: LengthRatios, source: Texts, target: Texts) -> None:
    """Rejected where a text is far longer or shorter than is usual in the language; learns from the texts otherwise.

    Prose is compared, without code. To be called in the order of the records, so that what is usual does not
    depend on which answer came first.
    """
    pairs = [
        (name, split_parts(text).prose, split_parts(target[name]).prose)
        for name, text in source.items()
        if any(map(str.isalpha, text)) and not is_code(text)
    ]
    for name, text, translated in pairs:
        if fault := ratios.fault(text, translated):
            raise Rejected(f"{fault} (in {name})")
    for _, text, translated in pairs:
        ratios.add(text, translated)
