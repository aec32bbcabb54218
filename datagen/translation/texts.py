"""Translate the texts of one record: split them into chunks, ask for JSON objects, check and join the answers."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from datagen.api.chat import Ask, Rejected, Reply
from datagen.api.pricing import estimate_tokens
from datagen.text.checks import fault_of_translation
from datagen.text.kept_parts import is_code, split_parts
from datagen.text.length_ratios import LengthRatios
from datagen.text.refusals import is_refusal
from datagen.translation.answer_json import parse_answer_object
from datagen.translation.splitting import split_text
from engine.base.errors import UserError
from engine.base.languages import Language
from engine.base.strict_json import reason_of

TEMPLATE_NAMES = {"needed": ("language", "record"), "optional": ("native_name", "note")}
# Low, for the likeliest wording; above 0, so a repeated request may give another answer.
TEMPERATURE = 0.3
MAX_TOKENS = 4096  # per answer
# Per request, of its texts. A text in Telugu or Malayalam has up to eight times as many tokens as in English.
LIMIT_TOKENS = 500

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Translator:
    """Translate English texts into one language.

    template      prompt with the names of TEMPLATE_NAMES
    limit_tokens  maximum tokens of the texts in one request; longer records are split (see `splitting`)
    is_checked    whether to check the answers; False for a dry run, where a simulated answer that fails a check would
                  end the record before all its requests are counted
    """

    language: Language
    template: string.Template
    limit_tokens: int = LIMIT_TOKENS
    is_checked: bool = True

    async def translate(self, texts: Texts, ask: Ask, note: str = "", keeps_english: bool = False) -> dict[str, str]:
        """Return the translated texts under the same keys. Empty texts are not sent: a model might invent a text.

        note: a line for the template's $note. keeps_english: the texts are about English, so parts of them stay
        English. Raises Rejected if an answer fails a check (see `checks`).
        """
        if not any(map(str.isalpha, "".join(texts.values()))):
            return dict(texts)
        chunks = {name: split_text(text, self.limit_tokens) for name, text in texts.items() if text.strip()}
        translated: dict[str, list[str]] = {name: [] for name in chunks}
        named = ((name, text) for name, split in chunks.items() for text in split.texts)
        for batch in _batches(named, self.limit_tokens):
            answer = await self._ask(batch, ask, note, keeps_english)
            for name, text in answer.items():
                translated[name].append(text)
        return {name: chunks[name].join(translated[name]) if name in chunks else text for name, text in texts.items()}

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
            if fault := fault_of_translation(source, answer[name], self.language, keeps_english):
                raise Rejected(f"{fault} (in {name})", reply)
        return answer


def load_checks(language: Language) -> None:
    """Load the language identifier of the checks before the first request. UserError if it cannot be loaded.

    Its model is unpacked into the temporary folder at its first use.
    """
    try:
        fault_of_translation("", "", language)
    except OSError as error:
        advice = "make room in the temporary folder, or name another in TMPDIR"
        raise UserError(f"the language check cannot unpack its model ({reason_of(error)}): {advice}") from error


def parse_texts(reply: Reply, texts: Texts) -> dict[str, str]:
    """Return the answer's object, with the keys of `texts` in their order.

    Raises Rejected, with the reason, unless the answer is a complete JSON object with exactly these keys and string
    values that are empty where the texts are.
    """
    answer = parse_object(reply)
    if fault := fault_of_object(answer, texts):
        raise Rejected(fault, reply)
    return {name: str(answer[name]) for name in texts}


def parse_object(reply: Reply) -> dict[str, object]:
    """Return the JSON object of a complete answer. Raises Rejected for any other answer."""
    if reply.fault:
        raise Rejected(reply.fault, reply)
    try:
        return parse_answer_object(reply.text)
    except ValueError as error:
        refused = is_refusal(reply.text)
        raise Rejected(f"refusal: {reply.text.strip()!r:.80}" if refused else f"JSON: {error}", reply) from None


def fault_of_object(answer: Mapping[str, object], texts: Texts) -> str | None:
    """Return the first fault of an answer, or None: missing or added keys, a value that is no string, emptiness.

    An added empty key is no fault: many models return the `input` that was not sent because it was empty.
    """
    added = {name for name in answer.keys() - texts.keys() if not _is_empty(answer[name])}
    for change, names in (("missing", texts.keys() - answer.keys()), ("added", added)):
        if names:
            return f"keys: {change} {sorted(names)[0]!r:.40}"
    for name, source in texts.items():
        text = answer[name]
        if not isinstance(text, str):
            return f"keys: {name!r} is no text"
        if bool(text.strip()) != bool(source.strip()):
            return f"empty: {name!r} is {'filled' if text.strip() else 'empty'} in the answer, not in the record"
    return None


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _batches(chunks: Iterable[tuple[str, str]], limit_tokens: int) -> Iterator[dict[str, str]]:
    """Group chunks of fields, in order, into requests of at most `limit_tokens`, with at most one chunk per field."""
    batch: dict[str, str] = {}
    used = 0
    for name, text in chunks:
        tokens = estimate_tokens(text)
        if batch and (name in batch or used + tokens > limit_tokens):
            yield batch
            batch, used = {}, 0
        batch[name] = text
        used += tokens
    if batch:
        yield batch


def check_lengths(ratios: LengthRatios, source: Texts, target: Texts) -> None:
    """Raise Rejected if a translation is far longer or shorter than usual; otherwise add the texts to `ratios`.

    Compares prose without code. Call it in the order of the records, so that the ratios do not depend on the order in
    which answers arrive.
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
