"""What a request has generated so far: tokens as they were recorded, and how much of them may be delivered.

Whoever reads a stream has nothing but an index into it. So that an index says everything, the text of a
token is fixed when the token may be delivered: a token whose text could still turn out to be the start of a
stop text waits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ryzanstein.v1.sampling_pb2 import TokenLogprobs

from .detokenizer import Detokenizer
from .stop_strings import StopAutomaton, StopMatcher


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A piece of a stream: tokens [first_index, first_index + len(token_ids)) and the text that comes with
    them."""

    first_index: int
    token_ids: Sequence[int]
    text: str
    #: Serialised `TokenLogprobs`, one per token; empty if they were not asked for.
    logprobs: Sequence[bytes] = ()


class RecordedOutput:
    """Tokens with their text, in order, never changed once delivered.

    `deliverable` counts the tokens from the start whose text is fixed. `stop` is the stop text that ended the
    stream; its text, and what its last token says behind it, is cut.
    """

    __slots__ = (
        "_detokenizer",
        "_length",
        "_matcher",
        "_pieces",
        "deliverable",
        "logprobs",
        "prompt_logprobs",
        "stop",
        "token_ids",
    )

    def __init__(
        self, detokenizer: Detokenizer, *, stops: StopAutomaton | None = None, with_logprobs: bool = False
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = None if stops is None else StopMatcher(stops)
        self._length = 0  # characters in all pieces
        self._pieces: list[str] = []  # most are strings that the detokenizer shares between streams
        self.token_ids = array("I")
        # Bytes, not messages: a message would keep alive everything that arrived in the same step.
        self.logprobs: list[bytes] | None = [] if with_logprobs else None
        #: Of the prompt's tokens from the second on, as far as they are known; empty if nobody asked.
        self.prompt_logprobs: list[bytes] = []
        self.deliverable = 0
        self.stop: str | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def kept_bytes(self) -> int:
        """About what it takes in memory: an id and a pointer per token, and the logprobs."""
        return 16 * len(self.token_ids) + _bytes_of(self.logprobs or ()) + _bytes_of(self.prompt_logprobs)

    @property
    def text(self) -> str:
        """Of all tokens that may be delivered."""
        return "".join(self._pieces[: self.deliverable])

    def extend(
        self, token_ids: Iterable[int], logprobs: Sequence[TokenLogprobs] = (), *, hide_last: bool = False
    ) -> None:
        """Records tokens up to the one that completes a stop text; the rest is dropped, as if never sampled.

        `hide_last`: the last of them ended the stream by its id and is not shown. Without `logprobs` where
        they are kept, NaN stands for what is unknown.
        """
        ids = list(token_ids)
        last = len(ids) - 1
        for index, token_id in enumerate(ids):
            if self.stop is not None:
                return
            hidden = hide_last and index == last
            piece = self._detokenizer.flush() if hidden else self._detokenizer.push(token_id)
            self._pieces.append(piece)
            self.token_ids.append(token_id)
            if self.logprobs is not None:
                known = logprobs[index] if index < len(logprobs) else _unknown(token_id)
                self.logprobs.append(known.SerializeToString())
            if self._matcher is None:
                self.deliverable += 1
            else:
                self._length += len(piece)
                self._look_for_stops(self._matcher, piece)

    def add_prompt_logprobs(self, first: int, logprobs: Sequence[TokenLogprobs]) -> bool:
        """Of the prompt's tokens from number `first` on; what is known already stays. False if some before are
        not known."""
        known = len(self.prompt_logprobs) + 1  # there is none of the first token
        if first > known or first < 1:
            return False
        self.prompt_logprobs += [entry.SerializeToString() for entry in logprobs[known - first :]]
        return True

    def close(self, *, flush: bool) -> None:
        """No token will follow: whatever was held back may be delivered.

        `flush`: the last token was recorded in this very moment, so that nobody has read it yet and a
        character that it leaves broken can still be shown with it.
        """
        if flush and self.stop is None and self._pieces:
            self._pieces[-1] += self._detokenizer.flush()
        self.deliverable = len(self.token_ids)

    def pieces(self, start: int, end: int) -> Sequence[str]:
        """The texts that came with the tokens [start, end)."""
        return self._pieces[start:end]

    def span(self, start: int, limit: int) -> TokenSpan:
        """At most `limit` of the deliverable tokens from `start` on."""
        end = min(self.deliverable, start + limit)
        if end == start + 1:  # the usual case, without slices
            return TokenSpan(
                start,
                (self.token_ids[start],),
                self._pieces[start],
                () if self.logprobs is None else (self.logprobs[start],),
            )
        return TokenSpan(
            start,
            self.token_ids[start:end],
            "".join(self._pieces[start:end]),
            () if self.logprobs is None else self.logprobs[start:end],
        )

    def _look_for_stops(self, matcher: StopMatcher, piece: str) -> None:
        match = matcher.feed(piece)
        if match is None:
            self.deliverable = self._tokens_within(matcher.clear)
            return
        self.stop = match.stop
        self._cut(self._length - match.start)
        self.deliverable = len(self.token_ids)

    def _tokens_within(self, characters: int) -> int:
        """How many tokens have all of their text within the first `characters` characters."""
        end, position = len(self._pieces), self._length
        while position > characters:
            end -= 1
            position -= len(self._pieces[end])
        return end

    def _cut(self, characters: int) -> None:
        """Takes the last `characters` characters off."""
        index = len(self._pieces)
        while characters > 0:
            index -= 1
            kept = self._pieces[index][: max(0, len(self._pieces[index]) - characters)]
            characters -= len(self._pieces[index]) - len(kept)
            self._pieces[index] = kept


def _bytes_of(logprobs: Sequence[bytes]) -> int:
    """All entries are about as large as the first: they name the same number of tokens."""
    return len(logprobs) * (48 + len(logprobs[0])) if logprobs else 0


def _unknown(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id=token_id, logprob=float("nan"))
