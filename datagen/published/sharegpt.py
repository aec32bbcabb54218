"""ShareGPT's conversations: {conversations: [{from: human or gpt, value}, ...]}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datagen.published.entries import OTHER_LANGUAGE, Entry, conversation, id_of, list_of, seems_named, wrong
from datagen.sources import Source
from engine.base.languages import Language
from engine.base.turns import ASSISTANT, SYSTEM, USER, Turn

_ROLES = {
    "human": USER, "user": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "assistant": ASSISTANT, "bing": ASSISTANT,
    "bard": ASSISTANT, "system": SYSTEM,
}  # fmt: skip


def read(sources: Iterable[Source], language: Language) -> Iterator[Entry]:
    """Yield a conversation, or the reason to leave it out. A question at its end, without answer, is cut off."""
    for number, source in enumerate(sources, 1):
        turns = _turns(source)
        while turns and turns[-1].role != ASSISTANT:
            turns.pop()
        if turns and turns[0].role == ASSISTANT:
            yield "begins with an answer"
        elif any(turn.role == SYSTEM for turn in turns[1:]):
            yield "roles do not take turns"
        elif not seems_named(source, [turn.content for turn in turns if turn.role == ASSISTANT], language):
            yield OTHER_LANGUAGE
        else:
            yield conversation(id_of(source, number, "sharegpt", "id"), turns)


def _turns(source: Source) -> list[Turn]:
    turns = []
    for i, message in enumerate(list_of(source, "conversations")):
        said = (message.get("from"), message.get("value")) if isinstance(message, dict) else (None, None)
        if not all(isinstance(word, str) for word in said) or said[0] not in _ROLES:
            what = f"it must have 'from' ({', '.join(_ROLES)}) and a text 'value'"
            raise wrong(source, f"'conversations[{i}]' is {message!r:.60}: {what}")
        turns.append(Turn(_ROLES[said[0]], said[1]))
    return turns
