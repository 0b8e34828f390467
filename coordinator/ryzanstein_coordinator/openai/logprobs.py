"""Logprobs in the two shapes that OpenAI's APIs have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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


def completion_logprobs(
    entries: Iterable[bytes], pieces: Sequence[str], offset: int, piece_of: TokenPiece
) -> dict[str, Any]:
    """`pieces` are the texts that came with the tokens; the first begins at `offset` of the choice's text."""
    tokens, values, tops, offsets = [], [], [], []
    for entry, text in zip(map(TokenLogprobs.FromString, entries), pieces, strict=True):
        name = token_text(piece_of(entry.token_id))
        tokens.append(name)
        values.append(_number(entry.logprob))
        top = {token_text(piece_of(top.token_id)): _number(top.logprob) for top in reversed(entry.top)}
        # The chosen one is always among them, last if it is beyond those that were asked for.
        tops.append(dict(reversed(top.items())) | {name: _number(entry.logprob)} if entry.top else None)
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops if any(tops) else None,
        "text_offset": offsets,
    }


def _chat_token(piece: str | bytes, logprob: float) -> dict[str, Any]:
    data = piece.encode() if isinstance(piece, str) else piece
    return {"token": data.decode(errors="replace"), "logprob": _number(logprob), "bytes": list(data)}


def _number(logprob: float) -> float | None:
    """JSON has no NaN: it stands for tokens whose logprob nobody knows any more."""
    return logprob if math.isfinite(logprob) else None
