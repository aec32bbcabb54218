"""Names of single tokens in answers with log-probabilities: their text and bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from engine.generation.stop_strings import UNFINISHED
from engine.text.byte_fallback import BYTE_TOKEN
from engine.text.tokenizer import decode


def _byte_alphabet() -> dict[str, int]:
    """Return the characters for bytes in byte-level tokenizers: printable ones for themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenNames:
    """Names of a tokenizer's tokens, cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text; none for a special token."""
        if token not in self._bytes:
            self._bytes[token] = self._find_bytes(token)
        return self._bytes[token]

    def name(self, token: int) -> str:
        """Return a token's text; a special token's name; "bytes:" and the bytes if they are not whole characters."""
        if token in self._special:
            return self._tokenizer.convert_ids_to_tokens(token)
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def offsets(self, tokens: Iterable[int], start: int = 0) -> list[int]:
        """Return the text offset of each token's first byte; the text begins at `start`."""
        pieces = [self.bytes_of(token) for token in tokens]
        raw = b"".join(pieces)
        begins, offsets, at = character_starts(raw), [], 0
        for piece in pieces:
            offsets.append(start + (bisect_right(begins, at) - 1 if at < len(raw) else len(begins)))
            at += len(piece)
        return offsets

    def text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens without special ones; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return _byte_alphabet()

    def _find_bytes(self, token: int) -> bytes:
        if token in self._special:
            return b""
        text = decode(self._tokenizer, [token])
        if UNFINISHED not in text:
            return text.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if found := BYTE_TOKEN.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        return text.encode()


def character_starts(raw: bytes) -> list[int]:
    """Return the byte offset of each character of raw.decode("utf-8", "replace")."""
    starts, at = [], 0
    while at < len(raw):
        starts.append(at)
        longest = raw[at : at + 4]  # a character has at most four bytes
        try:
            at += len(longest.decode()[0].encode())
        except UnicodeDecodeError as error:
            whole = longest[: error.start].decode()
            at += len(whole[0].encode()) if whole else error.end
    return starts
