"""Text from tokens, one token at a time, at a cost that does not grow with the text.

A character may be spread over several tokens: nothing of it is emitted before it is complete, so what was
emitted never has to be taken back. The texts of all tokens joined are what the tokenizer makes of all of
them at once.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from .token_text import DecoderRules

#: U+FFFD, for bytes that are no character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: Tokens of the prompt that are looked at for an unfinished character: it has four bytes at most.
_CONTEXT_TOKENS = 8

#: Tokens that may wait for the end of a character in `WindowDetokenizer`; then it is emitted as it is.
_LONGEST_WAIT_TOKENS = 16

#: Tokens that `WindowDetokenizer` decodes again with every new one, so that it is not the first of a text.
_WINDOW_TOKENS = 6


class Detokenizer(Protocol):
    """One stream's way from tokens to text."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is not complete."""

    def flush(self) -> str:
        """After the last token: U+FFFD for a character that stays incomplete, else nothing."""


class TokenPieces(dict[int, "str | bytes | None"]):
    """What each token id stands for, found out when it is first seen and shared by all streams of a model.

    Text, if the token is made of whole characters; bytes, if it begins or ends within one; None, if it is not
    shown (special tokens, ids that the tokenizer does not know).
    """

    def __init__(
        self, rules: DecoderRules, token_of: Callable[[int], str | None], special_ids: frozenset[int]
    ) -> None:
        super().__init__()
        self.rules = rules
        self._token_of = token_of
        self._special_ids = special_ids

    def __missing__(self, token_id: int) -> str | bytes | None:
        if token_id in self._special_ids:
            self[token_id] = None
            return None
        token = self._token_of(token_id)
        if token is None:
            return None  # not kept: the ids that a tokenizer doesn't know are without bound
        piece = _text_if_whole(self.rules.piece(token))
        self[token_id] = piece
        return piece

    def first(self, token_id: int) -> str | bytes | None:
        """What the token stands for as the first of a text."""
        if not self.rules.drop_in_first or self[token_id] is None:
            return self[token_id]
        token = self._token_of(token_id)
        return None if token is None else _text_if_whole(self.rules.first_piece(token))


def _text_if_whole(piece: str | bytes) -> str | bytes:
    if isinstance(piece, str):
        return piece
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece


class IncrementalDetokenizer:
    """For tokenizers whose tokens are bytes or text by themselves: byte-level BPE, byte fallback, Metaspace.

    `context` are the token ids before the first one: a text that goes on keeps the space before its first
    word, and a character that begins in the prompt is completed. A few tenths of a microsecond per token.
    """

    __slots__ = ("_at_start", "_pending", "_pieces", "_strip_left")

    def __init__(self, pieces: TokenPieces, context: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._pending = b""  # the bytes of a character that is not complete
        self._at_start = True
        self._strip_left = pieces.rules.strip_first[1]
        if any(pieces[token_id] is not None for token_id in reversed(context)):
            self._at_start = False
            self._strip_left = 0
        for token_id in context[-_CONTEXT_TOKENS:]:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._at_start and piece is not None:
            piece = self._pieces.first(token_id)
            self._at_start = False
        if piece is None:
            return ""
        if isinstance(piece, str):
            # Whole characters behind an unfinished one: that one can't be completed any more.
            text = self.flush() + piece if self._pending else piece
        else:
            data = self._pending + piece
            text, used = codecs.utf_8_decode(data, "replace", False)
            self._pending = data[used:]
        return self._strip(text) if self._strip_left and text else text

    def flush(self) -> str:
        """As the tokenizers' own decoders do: one U+FFFD per byte if bytes are tokens, else one in all."""
        pending, self._pending = self._pending, b""
        if not pending:
            return ""
        return REPLACEMENT * (len(pending) if self._pieces.rules.byte_fallback else 1)

    def _strip(self, text: str) -> str:
        content = self._pieces.rules.strip_first[0]
        while self._strip_left and text.startswith(content):
            text = text[len(content) :]
            self._strip_left -= 1
        if text:
            self._strip_left = 0
        return text


class WindowDetokenizer:
    """For every other tokenizer: asks it for the text of the last few tokens, with and without the new
    ones."""

    __slots__ = ("_decode", "_hidden", "_ids", "_read", "_read_text")

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        context: Sequence[int] = (),
        hidden: frozenset[int] = frozenset(),
    ) -> None:
        """`hidden` are ids that `decode` leaves out: a window full of them would look like the start of a
        text."""
        self._decode = decode
        self._hidden = hidden
        shown = (token_id for token_id in reversed(context) if token_id not in hidden)
        self._ids = [*itertools.islice(shown, _WINDOW_TOKENS)][::-1]
        self._read = len(self._ids)  # so many of _ids are in texts that were returned
        self._read_text = decode(self._ids)

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text == self._read_text:
            self._ids.pop()  # an id that the tokenizer does not know
            return ""
        waited = len(self._ids) - self._read
        if text.endswith(REPLACEMENT) and waited < _LONGEST_WAIT_TOKENS:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        new = text[len(self._read_text) :]
        self._ids = self._ids[-_WINDOW_TOKENS:]
        self._read = len(self._ids)
        self._read_text = self._decode(self._ids)
        return new
