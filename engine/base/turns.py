"""The messages of a conversation: an optional system message, then the user's and the assistant's in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.base.record_fields import BadField, short, text_of

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# {field of a record: (field of the role, field of the text, {role in the file: role})}
_FORMS = {
    "messages": ("role", "content", {role: role for role in (SYSTEM, USER, ASSISTANT)}),
    "conversations": ("from", "value", {SYSTEM: SYSTEM, "human": USER, "gpt": ASSISTANT}),
}
FIELDS = tuple(_FORMS)


class Turn(NamedTuple):
    """One message."""

    role: str
    content: str

    @property
    def message(self) -> dict[str, str]:
        """The message as chat templates read it."""
        return {"role": self.role, "content": self.content}


def read_turns(name: str, value: Any) -> tuple[Turn, ...]:
    """Return the turns of a record's field `messages` or `conversations`.

    BadField unless an optional system message is followed by the user's and the assistant's messages in turn, the
    user's first, none of them empty.
    """
    role_field, text_field, roles = _FORMS[name]
    if not isinstance(value, list) or not value:
        raise BadField(f"field {name!r} is {short(value)}: it must be a list of messages")
    turns: list[Turn] = []
    for i, message in enumerate(value):
        at = f"{name}[{i}]"
        if not isinstance(message, Mapping):
            raise BadField(f"field '{at}' is {short(message)}: it must be {{{role_field!r}: ..., {text_field!r}: ...}}")
        for field in (role_field, text_field):
            if field not in message:
                raise BadField(f"field '{at}.{field}' is missing (fields: {', '.join(map(short, message))}): add it")
        said = message[role_field]
        if not isinstance(said, str) or said not in roles:
            raise BadField(f"field '{at}.{role_field}' is {short(said)}: give {', '.join(roles)}")
        _check_order(f"'{at}.{role_field}'", said, roles[said], turns)
        turns.append(Turn(roles[said], text_of(f"'{at}.{text_field}'", message[text_field], empty_is_allowed=False)))
    if turns[-1].role == SYSTEM:
        raise BadField(f"field {name!r} has no message of the user: add it or drop the record")
    return tuple(turns)


def _check_order(where: str, said: str, role: str, before: Sequence[Turn]) -> None:
    """BadField unless the role may follow these turns."""
    if role == SYSTEM:
        if before:
            raise BadField(f"field {where} is {said!r}: a system message comes first, and there is one at most")
    elif not before or before[-1].role == SYSTEM:
        if role != USER:
            raise BadField(f"field {where} is {said!r}: the user speaks first; add the question or drop the answer")
    elif before[-1].role == role:
        raise BadField(f"field {where} is {said!r} twice in a row: user and assistant take turns; join or drop one")
