"""From tokens to the `choices` of a reply: one object per sequence, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..output import RecordedOutput, TokenSpan
from ..requests import Ending
from .logprobs import CompletionLogprobs, TokenPiece, chat_logprobs


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


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, where the reply begins with it. `pieces` are the texts of its tokens."""

    text: str
    token_ids: Sequence[int] = ()
    pieces: Sequence[str] = ()


class CompletionChoice:
    """Of /v1/completions. The echo comes with the first text, its logprobs with the first token's."""

    def __init__(
        self,
        index: int,
        output: RecordedOutput,
        piece_of: TokenPiece,
        *,
        start: int = 0,
        echo: Echo | None = None,
    ) -> None:
        self._index = index
        self._output = output
        self._piece_of = piece_of
        self._echo = echo or Echo("")
        self._begun = start > 0
        self._offset: int | None = None  # of the next token in the text; known when it is here

    def chunk(self, span: TokenSpan) -> dict[str, Any] | None:
        if not span.text and not span.logprobs:
            return None
        logprobs = self._logprobs(span.first_index, span.logprobs) if span.logprobs else None
        return self._part(self._text(span.text), logprobs, None)

    def last(self, ending: Ending) -> dict[str, Any]:
        return self._part(self._text(""), None, ending.outcome)

    def whole(self, ending: Ending) -> dict[str, Any]:
        entries = self._output.logprobs
        logprobs = self._logprobs(0, entries) if entries else None
        return self._part(self._text(self._output.text), logprobs, ending.outcome)

    def _text(self, text: str) -> str:
        if self._begun:
            return text
        self._begun = True
        return self._echo.text + text

    def _logprobs(self, start: int, entries: Sequence[bytes]) -> dict[str, Any]:
        """Of the tokens from `start` on, which come behind those that were asked for before."""
        if self._offset is None:
            before = sum(map(len, self._output.pieces(0, start)))
            self._offset = before + (len(self._echo.text) if start else 0)
        logprobs = CompletionLogprobs(self._piece_of, self._offset)
        if start == 0:
            self._add_prompt(logprobs)
        for entry, piece in zip(entries, self._output.pieces(start, start + len(entries)), strict=True):
            logprobs.add(entry, piece)
        self._offset = logprobs.offset
        return logprobs.plain()

    def _add_prompt(self, logprobs: CompletionLogprobs) -> None:
        echo = self._echo
        if echo.token_ids:
            logprobs.first_of_prompt(echo.token_ids[0], echo.pieces[0])
            for entry, piece in zip(self._output.prompt_logprobs, echo.pieces[1:], strict=True):
                logprobs.add(entry, piece)
        logprobs.offset = len(echo.text)

    def _part(self, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}
