"""A request from its admission to long after its end: what was asked, what was recorded, who listens."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError

from .admission import Amount
from .output import RecordedOutput, TokenSpan

#: Tokens of one message to a client: bounds the message whatever a slow reader has let come together.
MAX_SPAN_TOKENS = 4096
MAX_SPAN_TOKENS_WITH_LOGPROBS = 256

#: Owner (whose API key it was) and request id: ids are unique per owner.
RequestKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """What was asked, with every default filled in: enough to generate the same tokens again."""

    owner: str
    request_id: str
    model: str
    prompt: array[int]
    sampling: SamplingParams
    priority: int = 0
    #: The model's end-of-sequence ids; empty with ignore_eos.
    eos_token_ids: tuple[int, ...] = ()

    @property
    def key(self) -> RequestKey:
        return self.owner, self.request_id


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended. `outcome` is one of `observers.OUTCOMES`; "stop" and "length" are good ends."""

    outcome: str
    #: The stop text that ended it, if one did.
    stop: str = ""
    #: What its stream ends with instead of `finished`.
    error: StatusError | None = None
    #: It could go on if its caller came back: nothing is wrong with the request itself.
    revivable: bool = False


class Place(Enum):
    """Where a request is."""

    WAITING = "waiting"  # in the coordinator's queue
    RUNNING = "running"  # submitted to a group that serves
    STALLED = "stalled"  # its group is gone; it is submitted again when the group is back
    ENDED = "ended"


@dataclass(slots=True)
class Timings:
    """Seconds of the coordinator's monotonic clock."""

    admitted_at: float
    submitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float | None = None

    def queue_s(self, now: float) -> float:
        """Until it was submitted the first time."""
        return (now if self.submitted_at is None else self.submitted_at) - self.admitted_at

    def first_token_s(self) -> float:
        """From admission to the first token; 0 if there was none."""
        return 0.0 if self.first_token_at is None else self.first_token_at - self.admitted_at

    def total_s(self, now: float) -> float:
        """From admission to the end."""
        return (now if self.ended_at is None else self.ended_at) - self.admitted_at


#: A request whose group broke so often since its last token may be what breaks it.
SUSPECT_AFTER = 2


@dataclass(slots=True)
class Suspicion:
    """Faults of its group since a request last showed that it breaks nothing; see `suspicion`."""

    breaks: int = 0
    #: Of these: one while it was the only suspect there, the others while it was the only request there.
    alone: int = 0
    #: The memory ran out, and it was the largest request there.
    preempted: bool = False

    @property
    def is_suspect(self) -> bool:
        return self.breaks >= SUSPECT_AFTER

    @property
    def is_held(self) -> bool:
        """It is not submitted with all the others."""
        return self.preempted or self.is_suspect

    @property
    def needs_isolation(self) -> bool:
        """The next break is to say something about it for certain: nothing is computed beside it."""
        return self.alone > 0


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request. Changed by the router and the front door only, in the event loop."""

    spec: RequestSpec
    output: RecordedOutput
    #: Order of admission.
    arrival: int
    timings: Timings
    #: With which it counts in the queue's bound; 0: it was admitted in a former life.
    expected_tokens: int = 0
    #: On the coordinator's monotonic clock.
    deadline_at: float | None = None
    place: Place = Place.WAITING
    group_id: str | None = None
    #: Under which the leader knows it now; 0 while no leader does.
    sequence_id: int = 0
    #: Tokens that it had when it was submitted last.
    tokens_at_submission: int = 0
    cached_tokens: int = 0
    #: How often its stream from the leader broke its promise since its last token.
    violations: int = 0
    suspicion: Suspicion = field(default_factory=Suspicion)
    ending: Ending | None = None
    #: The metrics know how it ended.
    counted: bool = False
    listeners: set[Subscription] = field(default_factory=set)
    #: What log lines about it carry besides its id: how its caller's HTTP request is called.
    log_fields: dict[str, object] = field(default_factory=dict)

    @property
    def key(self) -> RequestKey:
        return self.spec.key

    @property
    def replay_tokens(self) -> int:
        """What must be prefilled to go on."""
        return len(self.spec.prompt) + len(self.output)

    @property
    def amount(self) -> Amount:
        """What it counts for while it has not ended."""
        tokens = len(self.spec.prompt)
        return Amount(requests=1, prompt_bytes=4 * tokens, tokens=tokens + self.expected_tokens)

    @property
    def kept_bytes(self) -> int:
        """About what it takes in memory while nothing happens to it."""
        return 1024 + 4 * len(self.spec.prompt) + self.output.kept_bytes

    def wake(self) -> None:
        """Tells the listeners that there is something new."""
        for listener in self.listeners:
            listener.wake()

    def end(self, ending: Ending, now: float, *, flush: bool = False) -> None:
        """Nothing will be recorded any more, unless the request is revived. `flush`: see
        RecordedOutput.close."""
        if not ending.revivable:  # else text that may be the start of a stop text is still held back
            self.output.close(flush=flush)
        self.ending = ending
        self.place = Place.ENDED
        self.sequence_id = 0
        self.group_id = None
        self.timings.ended_at = now
        self.wake()

    def revive(self) -> None:
        """The opposite of `end`: it can wait again, with the tokens that it has."""
        self.ending = None
        self.place = Place.WAITING
        self.timings.ended_at = None
        self.timings.last_token_at = None  # its caller was away: that is no latency of ours


class Subscription:
    """One reader of a request: an index into its output, and nothing else that could grow.

    A reader that is slow finds more tokens at once when it comes back.
    """

    __slots__ = ("_limit", "_waiter", "index", "record")

    def __init__(self, record: RequestRecord, index: int = 0) -> None:
        self.record = record
        self.index = index
        self._limit = MAX_SPAN_TOKENS if record.output.logprobs is None else MAX_SPAN_TOKENS_WITH_LOGPROBS
        self._waiter: asyncio.Future[None] | None = None
        record.listeners.add(self)

    def wake(self) -> None:
        """There is something new, or the end."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def next(self) -> TokenSpan | Ending:
        """The next tokens, as many as there are; after the last one the ending. One call at a time."""
        while True:
            record = self.record
            if self.index < record.output.deliverable:
                span = record.output.span(self.index, self._limit)
                self.index += len(span.token_ids)
                return span
            if record.ending is not None:
                return record.ending
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Listens no more."""
        self.record.listeners.discard(self)


#: What a decision needs to know of the time: seconds that only grow.
Clock = Callable[[], float]
