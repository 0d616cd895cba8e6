"""From tokens to text, piece by piece: whole characters, stop strings, the bytes of a token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.hf.tokenizer import byte_letters

if TYPE_CHECKING:
    import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTES = 4
"""Of a character at most: more that are none in a row never become one."""
MOST = 64
"""Tokens to look back at where there are no characters."""


class Detokenizer:
    """The text of tokens as they come.

    A character that several tokens make up comes with the last of them. Together the pieces are
    what `tokenizer.decode` makes of all tokens, if these are a text at all.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, skip_special: bool = True):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        # A window on the newest tokens, because decoding all of them for each would be quadratic.
        # It begins with tokens whose text is out: alone, the others could lose the space before.
        self._window: list[int] = []
        self._before = self._out = 0

    def push(self, token: int) -> str:
        """The text that is whole with this token; empty where a character has bytes to come."""
        self._window.append(token)
        text = self._decode()
        whole = text.rstrip(REPLACEMENT)
        if len(self._window) > MOST and len(text) - len(whole) >= BYTES:
            whole = text
        if len(whole) <= self._out:
            return ""
        new, self._out = whole[self._out :], len(whole)
        if whole == text:
            self._window = self._window[self._before :]
            self._before, self._out = len(self._window), len(self._decode())
        return new

    def rest(self) -> str:
        """What is left when no more tokens come: bytes that are no character, as decode has it."""
        new = self._decode()[self._out :]
        self._out += len(new)
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip_special)


class Cut:
    """Text up to the first of some strings; what may be the beginning of one waits.

    Attributes:
        found: the string that ended the text, or None.
        behind: what the text with which it was whole has behind it.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""
        self.found: str | None = None
        self.behind = ""

    def push(self, text: str) -> str:
        """What of the text so far is certain to come before any stop, and was not given yet."""
        if self.found is not None:
            return ""
        held = self._held + text
        places = [(held.find(stop), stop) for stop in self._stops if stop in held]
        if places:
            place, self.found = min(places)
            self._held, self.behind = "", held[place + len(self.found) :]
            return held[:place]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What waited, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest proper beginning of `stop` that `text` ends with, in characters."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Spelling:
    """What each token of a vocabulary is in bytes and as a text of its own."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        state = tokenizer.decoder and json.loads(tokenizer.decoder.__getstate__())
        self._bytes = {letter: byte for byte, letter in enumerate(byte_letters())}
        self._byte_level = "ByteLevel" in json.dumps(state)

    def bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for ids that the tokenizer has no token for."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()
        if self._byte_level:
            return b"".join(self._byte(letter) for letter in piece)
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", piece):
            return bytes.fromhex(byte[1])
        return piece.replace("▁", " ").encode()

    def text(self, token: int) -> str:
        """The bytes as text, written "bytes:\\xe4..." where that is not whole characters."""
        raw = self.bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _byte(self, letter: str) -> bytes:
        byte = self._bytes.get(letter)
        return letter.encode() if byte is None else bytes([byte])
