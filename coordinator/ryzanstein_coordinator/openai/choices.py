"""From tokens to the `choices` of a reply: one object per sequence, whole or in chunks."""

from __future__ import annotations

from typing import Any, Protocol

from ..output import RecordedOutput, TokenSpan
from ..requests import Ending
from .logprobs import TokenPiece, chat_logprobs, completion_logprobs


class Choice(Protocol):
    """One sequence of a reply. `chunk` and `last` are asked in the order of the stream."""

    def chunk(self, span: TokenSpan) -> dict[str, Any] | None:
        """What these tokens add; None if that is nothing that can be seen."""

    def last(self, ending: Ending) -> dict[str, Any]:
        """The end, which is good."""

    def whole(self, ending: Ending) -> dict[str, Any]:
        """All at once."""


class ChatChoice:
    """Of /v1/chat/completions. The role comes with the first text, unless the client has that already."""

    def __init__(self, index: int, output: RecordedOutput, piece_of: TokenPiece, *, start: int = 0) -> None:
        self._index = index
        self._output = output
        self._piece_of = piece_of
        self._begun = start > 0

    def chunk(self, span: TokenSpan) -> dict[str, Any] | None:
        if not span.text and not span.logprobs:
            return None
        return self._part(
            self._delta(span.text),
            chat_logprobs(span.logprobs, self._piece_of) if span.logprobs else None,
            None,
        )

    def last(self, ending: Ending) -> dict[str, Any]:
        return self._part({} if self._begun else self._delta(""), None, ending.outcome)

    def whole(self, ending: Ending) -> dict[str, Any]:
        entries = self._output.logprobs
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": self._output.text, "refusal": None},
            "logprobs": None if entries is None else chat_logprobs(entries, self._piece_of),
            "finish_reason": ending.outcome,
        }

    def _delta(self, text: str) -> dict[str, Any]:
        if self._begun:
            return {"content": text}
        self._begun = True
        return {"role": "assistant", "content": text}

    def _part(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionChoice:
    """Of /v1/completions. `echo` is the text of the prompt, which comes with the first text."""

    def __init__(
        self, index: int, output: RecordedOutput, piece_of: TokenPiece, *, start: int = 0, echo: str = ""
    ) -> None:
        self._index = index
        self._output = output
        self._piece_of = piece_of
        self._echo = echo
        self._begun = start > 0
        self._offset: int | None = None  # of the next token in the text; known when it is here

    def chunk(self, span: TokenSpan) -> dict[str, Any] | None:
        if not span.text and not span.logprobs:
            return None
        return self._part(self._text(span.text), self._logprobs(span), None)

    def last(self, ending: Ending) -> dict[str, Any]:
        return self._part(self._text(""), None, ending.outcome)

    def whole(self, ending: Ending) -> dict[str, Any]:
        output = self._output
        entries = output.logprobs
        logprobs = (
            None
            if entries is None
            else completion_logprobs(entries, output.pieces(0, len(output)), len(self._echo), self._piece_of)
        )
        return self._part(self._echo + output.text, logprobs, ending.outcome)

    def _text(self, text: str) -> str:
        if self._begun:
            return text
        self._begun = True
        return self._echo + text

    def _logprobs(self, span: TokenSpan) -> dict[str, Any] | None:
        if not span.logprobs:
            return None
        start = span.first_index
        pieces = self._output.pieces(start, start + len(span.token_ids))
        if self._offset is None:
            self._offset = len(self._echo) + sum(map(len, self._output.pieces(0, start)))
        offset = self._offset
        self._offset += sum(map(len, pieces))
        return completion_logprobs(span.logprobs, pieces, offset, self._piece_of)

    def _part(self, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}
