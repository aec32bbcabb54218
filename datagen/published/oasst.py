"""OpenAssistant's data (Köpf et al. 2023): trees of messages, or the flat messages of which trees are made.

A tree gives one conversation, the path of its best answers, and a ranking of each question's ranked answers. In these
files rank 0 is the best.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from datagen.published.entries import (
    NO_ANSWER,
    OTHER_LANGUAGE,
    Entry,
    conversation,
    fields_of,
    is_named,
    ranking,
    wrong,
)
from datagen.sources import Source
from engine.base.languages import Language
from engine.base.turns import ASSISTANT, USER, Turn

_ROLES = {"prompter": USER, "assistant": ASSISTANT}
DELETED = "message deleted or refused by reviewers"


@dataclass
class Message:
    """A message with its replies, best first where they are ranked. rank is None for a message that was not ranked."""

    id: str
    parent: str | None
    turn: Turn
    lang: str
    rank: int | None
    is_refused: bool
    replies: list[Message] = field(default_factory=list)


def read(sources: Iterable[Source], language: Language) -> Iterator[Entry]:
    """Yield conversations and rankings, and the reasons for which messages were left out."""
    loose: list[Message] = []
    for source in sources:
        if isinstance(root := source.fields.get("prompt"), dict):
            yield from _tree(_nested(source, root), language)
        elif "message_id" in source.fields:
            loose.append(_message(source, source.fields))
        else:
            raise wrong(source, f"the fields are {fields_of(source)}: give trees ('prompt') or messages ('message_id')")
    known = {message.id for message in loose}
    children = defaultdict(list)
    for message in loose:
        children[message.parent].append(message)
    for message in loose:
        message.replies = children[message.id]
    for message in loose:
        if message.parent is None:
            yield from _tree(message, language)
        elif message.parent not in known:
            yield from ["replies to a message that is not in the file"] * _size(message)


def _nested(source: Source, root: dict[str, Any]) -> Message:
    """Return a tree's root with all its replies. No recursion: threads can be long."""
    top = _message(source, root)
    waiting = [(top, root)]
    while waiting:
        message, fields = waiting.pop()
        replies = fields.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise wrong(source, f"field 'replies' of message {message.id} must be a list of messages")
        message.replies = [_message(source, reply) for reply in replies]
        waiting += zip(message.replies, replies)
    return top


def _message(source: Source, fields: dict[str, Any]) -> Message:
    for name in ("message_id", "text", "role", "lang"):
        if not isinstance(fields.get(name), str):
            raise wrong(source, f"field {name!r} of a message is {fields.get(name)!r:.60}: it must be a string")
    rank, parent = fields.get("rank"), fields.get("parent_id")
    if fields["role"] not in _ROLES:
        raise wrong(source, f"field 'role' is {fields['role']!r:.40}: give {' or '.join(_ROLES)}")
    if isinstance(rank, float) and rank == int(rank):
        rank = int(rank)  # tables with missing ranks store them as floats
    if rank is not None and type(rank) is not int:
        raise wrong(source, f"field 'rank' is {rank!r:.40}: it must be a whole number or null")
    if parent is not None and not isinstance(parent, str):
        raise wrong(source, f"field 'parent_id' is {parent!r:.40}: it must be a string or null")
    is_refused = fields.get("deleted") is True or fields.get("review_result") is False
    turn = Turn(_ROLES[fields["role"]], fields["text"])
    return Message(fields["message_id"], parent, turn, fields["lang"], rank, is_refused)


def _tree(root: Message, language: Language) -> Iterator[Entry]:
    """Yield what a tree gives: rankings, one conversation, and a reason for each message that is left out."""
    best: list[Turn] = []  # the path of the best answers that there are
    waiting = [(root, (), True)]
    while waiting:
        message, history, is_best = waiting.pop()
        if reason := _fault(message, language):
            yield from [reason] * _size(message)
            continue
        here = (*history, message.turn)
        if is_best:
            best = list(here)
        good = [reply for reply in message.replies if not _fault(reply, language)]
        good.sort(key=lambda reply: (reply.rank is None, reply.rank))
        if message.turn.role == USER:
            ranked = [(reply.turn.content, reply.rank) for reply in good if reply.rank is not None]
            if len(ranked) > 1:
                yield ranking(message.id, message.turn.content, "", ranked, history)
        else:  # go on with a question that has an answer
            good.sort(key=lambda reply: all(_fault(answer, language) for answer in reply.replies))
        bad = [reply for reply in message.replies if _fault(reply, language)]
        waiting += [(reply, here, is_best and i == 0) for i, reply in enumerate(good)][::-1]
        waiting += [(reply, here, False) for reply in bad]
    while best and best[-1].role == USER:
        best.pop()
    if not _fault(root, language):
        yield conversation(root.id, best)


def _fault(message: Message, language: Language) -> str | None:
    if message.is_refused:
        return DELETED
    if not is_named(message.lang, language):
        return OTHER_LANGUAGE
    return None if message.turn.content.strip() else NO_ANSWER


def _size(message: Message) -> int:
    """Return how many messages a message and all below it are."""
    count, waiting = 0, [message]
    while waiting:
        found = waiting.pop()
        count += 1
        waiting += found.replies
    return count
