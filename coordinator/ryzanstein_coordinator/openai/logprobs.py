"""Logprobs in the two shapes that OpenAI's APIs have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ryzanstein.v1.sampling_pb2 import TokenLogprobs

#: What a token stands for: text, or bytes if it begins or ends within a character.
TokenPiece = Callable[[int], str | bytes]


def token_text(piece: str | bytes) -> str:
    """As /v1/completions names a token, which must differ from every other: bytes are written out."""
    if isinstance(piece, str):
        return piece
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_logprobs(entries: Iterable[bytes], piece_of: TokenPiece) -> dict[str, Any]:
    """`entries` are serialised TokenLogprobs, one per token."""
    content = []
    for entry in map(TokenLogprobs.FromString, entries):
        token = _chat_token(piece_of(entry.token_id), entry.logprob)
        token["top_logprobs"] = [_chat_token(piece_of(top.token_id), top.logprob) for top in entry.top]
        content.append(token)
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """Of a part of a text, token by token. `offset` is where in the choice's text the part begins."""

    def __init__(self, piece_of: TokenPiece, offset: int) -> None:
        self._piece_of = piece_of
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._tops: list[dict[str, float | None] | None] = []
        self._offsets: list[int] = []
        #: Where the next token begins.
        self.offset = offset

    def first_of_prompt(self, token_id: int, text: str) -> None:
        """Nothing predicts it."""
        self._add(self._name(token_id), text, None, None)

    def add(self, entry: bytes, text: str) -> None:
        """A serialised TokenLogprobs, and the text that came with its token."""
        logprobs = TokenLogprobs.FromString(entry)
        name, value = self._name(logprobs.token_id), _number(logprobs.logprob)
        top = {self._name(one.token_id): _number(one.logprob) for one in reversed(logprobs.top)}
        # The token itself is always among them, last if it is beyond those that were asked for.
        tops = dict(reversed(top.items())) | {name: value} if top else None
        self._add(name, text, value, tops)

    def plain(self) -> dict[str, Any]:
        """As the reply has it."""
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._tops if any(self._tops) else None,
            "text_offset": self._offsets,
        }

    def _add(self, name: str, text: str, logprob: float | None, top: dict[str, float | None] | None) -> None:
        self._tokens.append(name)
        self._logprobs.append(logprob)
        self._tops.append(top)
        self._offsets.append(self.offset)
        self.offset += len(text)

    def _name(self, token_id: int) -> str:
        return token_text(self._piece_of(token_id))


def _chat_token(piece: str | bytes, logprob: float) -> dict[str, Any]:
    data = piece.encode() if isinstance(piece, str) else piece
    return {"token": data.decode(errors="replace"), "logprob": _number(logprob), "bytes": list(data)}


def _number(logprob: float) -> float | None:
    """JSON has no NaN: it stands for tokens whose logprob nobody knows any more."""
    return logprob if math.isfinite(logprob) else None
