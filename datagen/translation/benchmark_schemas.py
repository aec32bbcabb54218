"""Okapi's benchmark schemas: get the texts of an item to translate, put translations back, and check the item."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from datagen.sources import Source
from engine.base.errors import UserError

Item = dict[str, Any]

_OPTION = re.compile(r"option_[a-z]")
_LISTS = ("endings", "mc1_targets_choices", "mc2_targets_choices")
_NEEDED = {
    "ARC or MMLU": ("instruction", "option_a", "option_b", "answer"),
    "HellaSwag": ("ctx", "endings", "label"),
    "TruthfulQA": (
        "question",
        *("mc1_targets_choices", "mc1_targets_labels", "mc2_targets_choices", "mc2_targets_labels"),
    ),
}
_TEXTS = ("instruction", "question", "activity_label", "ctx", "ctx_a", "ctx_b")


def item_texts(item: Mapping[str, Any]) -> dict[str, str]:
    """Return path -> text for every text of the item to translate, with paths like "option_a" or "endings[2]"."""
    return dict(_texts(item))


def _texts(item: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in item.items():
        if (name in _TEXTS or _OPTION.fullmatch(name)) and isinstance(value, str):
            yield name, value
        elif name in _LISTS:
            yield from ((f"{name}[{index}]", text) for index, text in enumerate(value))


def with_texts(item: Mapping[str, Any], texts: Mapping[str, str]) -> Item:
    """Return the item with `texts` at their paths. All other fields, and the order of fields, stay."""
    return {
        name: [texts[f"{name}[{index}]"] for index in range(len(value))] if name in _LISTS else texts.get(name, value)
        for name, value in item.items()
    }


def option_groups(item: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the groups of answer options, each as path -> text: one group, or two for TruthfulQA."""
    texts = item_texts(item)
    groups: dict[str, dict[str, str]] = {}
    for path, text in texts.items():
        if path.endswith("]") or _OPTION.fullmatch(path):
            groups.setdefault(path.split("[")[0] if "[" in path else "option", {})[path] = text
    return list(groups.values())


def option_faults(item: Mapping[str, Any]) -> list[str]:
    """Return messages about empty options and equal options (up to case and white space)."""
    faults = []
    for group in option_groups(item):
        seen: dict[str, str] = {}
        for path, text in group.items():
            plain = " ".join(text.split()).casefold()
            if not plain:
                faults.append(f"empty options: {path}")
            elif plain in seen:
                faults.append(f"equal options: {seen[plain]} and {path}")
            else:
                seen[plain] = path
    return faults


def check_item(source: Source) -> None:
    """Check that a record is in one of the schemas. UserError with file, line and field otherwise."""
    item = source.fields
    schema = next((name for name, needed in _NEEDED.items() if needed[0] in item and needed[1] in item), None)
    if schema is None:
        known = "; ".join(f"{name}: {', '.join(needed[:2])}" for name, needed in _NEEDED.items())
        fields = ", ".join(list(item)[:8])
        raise UserError(f"{source.where}: the fields {fields} match no benchmark: an item must have {known}")
    if missing := [name for name in _NEEDED[schema] if name not in item]:
        raise UserError(f"{source.where}: field {missing[0]!r} is missing: every {schema} item needs it")
    for name in item:
        is_list = name in _LISTS
        if is_list and not (isinstance(item[name], list) and all(isinstance(text, str) for text in item[name])):
            raise UserError(f"{source.where}: field {name!r} is {item[name]!r:.60}: it must be a list of strings")
        if not is_list and (name in _TEXTS or _OPTION.fullmatch(name)):
            source.text(name)
