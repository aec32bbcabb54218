"""Check the files of a tokenizer before a library reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.strict_json import read_object, reason_of, shown_size
from engine.models.config_rules import SIZES, refuse_code

TOKENIZER_BYTES = 256 * 2**20  # the largest published ones have a tenth of it
MOST_GROWTH = 100
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SUFFIXES = (".json", ".model", ".jinja", ".txt")
_MORE_TEMPLATES = "additional_chat_templates"  # transformers' folder for those with names
_NOT_TOKENIZERS = (".index.json", "generation_config.json")
_FAMILY = ("model_type", "tokenizer_class", "auto_map")  # what transformers reads of config.json
# Settings by which transformers would take a tokenizer from elsewhere than the folder's own files.
_OTHER_FILES = ("gguf_file", "fast_tokenizer_files", "merges_file", "spm_file")
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError, IndexError, RuntimeError)


def content_of(folder: Path) -> bytes:
    """Return a digest of the folder's tokenizer files and of its model's family: equal ones give equal tokenizers.

    UserError for a file above TOKENIZER_BYTES, and for one that cannot be read.
    """
    _check_sizes(folder)
    digest = sha256()
    with refusing(folder):
        for path in sorted([*folder.iterdir(), *folder.glob(f"{_MORE_TEMPLATES}/*")]):
            if path.suffix in _SUFFIXES and not path.name.endswith(_NOT_TOKENIZERS) and path.is_file():
                content = _family(path.read_bytes()) if path.name == "config.json" else path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.digest()


def read_tokenizer_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tokenizer_config.json and tokenizer.json, each {} if missing.

    UserError for a folder without a tokenizer, a file above TOKENIZER_BYTES, bad JSON, and settings that name code or
    other files.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder} holds no tokenizer ({', '.join(FILES)}): copy the model's own into it")
    _check_sizes(folder)
    settings, backend = (_read(folder / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    _check_settings(settings, folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file() and not isinstance(backend.get("model"), dict):
        raise UserError(f"{folder / 'tokenizer.json'} has no field 'model': it is no tokenizer file; fetch it again")
    _check_ids(backend, folder / "tokenizer.json")
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if _growth(backend.get(part)) > MOST_GROWTH:
            raise UserError(
                f"{folder / 'tokenizer.json'}: its {part} could make a text more than {MOST_GROWTH} times longer: "
                "it is no tokenizer's; fetch it again"
            )
    return settings, backend


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Context that turns the libraries' errors for bad tokenizer files into a UserError.

    The tokenizers library (Rust) raises plain Exceptions, and on a panic a PanicException, which is not an Exception.
    """
    try:
        yield
    except BaseException as error:
        is_rust = type(error) is Exception or type(error).__name__ == "PanicException"
        if not is_rust and not isinstance(error, _LOAD_ERRORS):
            raise
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded ({reason_of(error)}): fetch its files again"
        ) from error


def _family(config: bytes) -> bytes:
    """Return what decides the tokenizer in a config.json; all of a damaged one, which is refused with the model."""
    try:
        fields = json.loads(config)
    except (ValueError, RecursionError):
        return config
    return repr([fields.get(name) for name in _FAMILY]).encode() if isinstance(fields, dict) else config


def _check_sizes(folder: Path) -> None:
    """UserError for a tokenizer file that is too large."""
    for path in sorted(folder.iterdir()):
        size_bytes = path.stat().st_size if path.is_file() else 0
        if path.suffix in _SUFFIXES and size_bytes > TOKENIZER_BYTES:
            limit = shown_size(TOKENIZER_BYTES)
            raise UserError(f"{path} has {size_bytes:,} bytes, the limit for a tokenizer is {limit}: fetch it again")


def _check_settings(settings: Mapping[str, Any], file: Path) -> None:
    """UserError for a tokenizer_config.json that names code or other files."""
    refuse_code(settings, file)
    for name in _OTHER_FILES:
        if settings.get(name):
            raise UserError(f"{file} names other files to load ({name}): take that out")
    templates = settings.get("chat_template")
    names = [entry.get("name") for entry in templates if isinstance(entry, dict)] if isinstance(templates, list) else []
    # Saving the tokenizer makes a file of each name.
    if odd := [name for name in names if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name)]:
        raise UserError(f"{file} has a chat template called {odd[0]!r:.60}: give it a name of letters and digits")


def _check_ids(backend: Mapping[str, Any], file: Path) -> None:
    """UserError for a token id beyond any vocabulary: the library would allocate all ids below it."""
    vocab, added = backend.get("model", {}).get("vocab"), backend.get("added_tokens")
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    if odd := [i for i in ids if isinstance(i, int) and i >= SIZES["vocab_size"]]:
        raise UserError(f"{file} has the token id {odd[0]!r:.60}, the limit is {SIZES['vocab_size']:,}: fetch it again")


def _growth(part: Any) -> int:
    """How many times longer the steps of a part can make a text, one after the other; more than enough is enough.

    ByteLevel writes up to two characters for one, Replace as many as it likes: forty of either fill any memory.
    """
    if isinstance(part, dict):
        content = part.get("content") if part.get("type") == "Replace" else ""
        factor = 2 if part.get("type") == "ByteLevel" else max(1, len(content)) if isinstance(content, str) else 1
        children = part.values()
    else:
        factor, children = 1, part if isinstance(part, list) else ()
    for child in children:
        factor = min(factor * _growth(child), MOST_GROWTH + 1)
    return factor


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, "fetch it again", TOKENIZER_BYTES) if path.is_file() else {}
