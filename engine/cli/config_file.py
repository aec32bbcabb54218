"""Read a --config file: one flat mapping of settings to plain values, in YAML or JSON.

YAML is read for its words only: tags build nothing, aliases are not expanded, and a duplicate setting is an error.
Numbers stay text for the flag's type to parse.
"""

from __future__ import annotations

import yaml

from engine.base.errors import UserError
from engine.base.strict_json import parse_whole, reason_of, shown_size

CONFIG_BYTES = 2**20
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_KINDS = {dict: "a mapping", list: "a list", yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}

Plain = str | int | float | bool | None


def read_config(path: str) -> dict[str, Plain | list[Plain]]:
    """Return the settings in a file. UserError, naming the file, unless it is a flat mapping of at most 1 MiB."""
    text = _text(path)
    try:
        values = _of_json(text) if path.endswith(".json") else _of_yaml(text)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind, line = ("JSON", getattr(error, "lineno", None)) if path.endswith(".json") else ("YAML", None)
        where = f"line {line}: " if line else ""
        raise UserError(f"--config {path} is not valid {kind} ({where}{_words(error)}): fix it") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must contain one mapping of setting to value, not {values}: write `lr: 1e-5`")
    for name, value in values.items():
        for word in (name, *(value if isinstance(value, list) else [value])):
            if word is None and isinstance(value, list):
                raise UserError(f"--config {path}: setting {name!r:.60} contains a null in its list: leave it out")
            if isinstance(word, str) and not _is_text(word):
                raise UserError(f"--config {path}: setting {name!r:.60} contains a NUL or half a character: remove it")
    return values


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path} cannot be read ({reason_of(error)}): check the path") from error
    if len(data) > CONFIG_BYTES:
        raise UserError(f"--config {path} is larger than {shown_size(CONFIG_BYTES)}, the limit: check the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _of_json(text: str) -> dict[str, Plain | list[Plain]] | str:
    """Return the mapping, or the type name of anything else."""
    value = parse_whole(text)
    if not isinstance(value, dict):
        return type(value).__name__
    for name, given in value.items():
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, dict | list):
                raise _not_plain(name, item)
    return value


def _of_yaml(text: str) -> dict[str, Plain | list[Plain]] | str:
    """Return the mapping, or the type name of anything else."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return {None: "NoneType", "scalar": "str", "sequence": "list"}[root and root.id]
    values: dict[str, Plain | list[Plain]] = {}
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError("a setting's name must be a word: write `lr: 1e-5`")
        if key.value in values:
            raise UserError(f"setting {key.value!r:.60} is given twice: keep one")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode):
                raise _not_plain(key.value, item)
        words = [_scalar(item) for item in items]
        values[key.value] = words if isinstance(node, yaml.SequenceNode) else words[0]
    return values


def _scalar(node: yaml.ScalarNode) -> str | bool | None:
    if node.tag == _NULL and node.style is None:
        return None
    if node.tag == _BOOL and node.style is None:
        return yaml.SafeLoader.bool_values.get(node.value.lower(), node.value)
    return node.value


def _not_plain(name: str, item: object) -> UserError:
    return UserError(f"setting {name!r:.60} must be a plain value or a list of them, not {_KINDS[type(item)]}")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in word


def _words(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return getattr(error, "msg", None) or " ".join(str(error).split())[:300]
