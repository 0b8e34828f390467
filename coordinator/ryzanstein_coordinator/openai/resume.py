"""Going on with a request over HTTP.

`Idempotency-Key` is the request's id among its owner's: a second POST with the same key and the same body is
given the same request, whether it runs, has ended, or is from a former life of the coordinator. Every
server-sent event carries as its id how many tokens of each sequence it and those before it hold, separated by
commas; sent back as `Last-Event-ID` it is where the stream goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import grpc

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError

from ..errors import shown
from ..front_door import FrontDoor
from ..intake import GenerateCall, Intake
from ..requests import RequestSpec, Subscription
from .errors import BadRequestError

#: Leaves room for the number of a sequence behind it.
_KEY = re.compile(r"[ -~]{1,120}")
_EVENT_ID = re.compile(r"\d{1,10}(,\d{1,10})*")


@dataclass(frozen=True, slots=True)
class Resume:
    """What the headers of a POST say about an earlier one."""

    #: Empty: this request can't be gone on with.
    key: str = ""
    #: Tokens that the client has of each sequence. None: it begins from the start.
    positions: tuple[int, ...] | None = None

    def request_id(self, sequence: int) -> str:
        """Of one of the sequences. Empty: one is made."""
        return f"{self.key}#{sequence}" if self.key and sequence else self.key

    def position(self, sequence: int) -> int:
        return 0 if self.positions is None else self.positions[sequence]


def read_resume(headers: Mapping[str, str], *, sequences: int, stream: bool) -> Resume:
    """Raises BadRequestError naming the header."""
    key, last = headers.get("idempotency-key", ""), headers.get("last-event-id", "")
    if key and not _KEY.fullmatch(key):
        raise BadRequestError("the header Idempotency-Key must be 1 to 120 printable ASCII characters")
    if not last or not stream:
        return Resume(key)
    if not key:
        raise BadRequestError(
            "the header Last-Event-ID needs the Idempotency-Key of the request to go on with"
        )
    if not _EVENT_ID.fullmatch(last):
        raise BadRequestError(
            f"the header Last-Event-ID is {shown(last)}, which is no id of an event of ours"
        )
    positions = tuple(int(position) for position in last.split(","))
    if len(positions) != sequences:
        raise BadRequestError(
            f"the header Last-Event-ID counts {len(positions)} sequences; this request has {sequences}"
        )
    return Resume(key, positions if any(positions) else None)


def event_id(positions: Sequence[int]) -> str:
    """What `read_resume` understands."""
    return ",".join(map(str, positions))


async def subscribe(
    front_door: FrontDoor,
    intake: Intake,
    call: GenerateCall,
    resume: Resume,
    sequence: int,
    *,
    drawn_seed: int | None = None,
) -> Subscription:
    """To the request of that key if there is one, else to a new one, with that seed if the call has none.

    Raises StatusError, BadRequestError.
    """
    call = replace(call, request_id=resume.request_id(sequence))
    seeded = _with_seed(call, drawn_seed)
    if not call.request_id:
        return await front_door.generate(seeded)
    intake.check(call)
    try:
        subscription = await front_door.attach(
            call.request_id, (), owner=call.owner, from_index=resume.position(sequence)
        )
    except StatusError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND or resume.positions is not None:
            raise  # what the client has is of a request that nobody knows any more
        return await front_door.generate(seeded)
    try:
        await _check_same(intake, call, subscription.record.spec)
    except BaseException:
        front_door.leave(subscription)
        raise
    return subscription


def _with_seed(call: GenerateCall, seed: int | None) -> GenerateCall:
    if seed is None or call.sampling.HasField("seed"):
        return call
    sampling = SamplingParams()
    sampling.CopyFrom(call.sampling)
    sampling.seed = seed
    return replace(call, sampling=sampling)


async def _check_same(intake: Intake, call: GenerateCall, known: RequestSpec) -> None:
    asked = await intake.read(replace(call, sampling=with_known(call.sampling, known)), known.request_id)
    if asked != replace(known, priority=asked.priority):
        raise BadRequestError(
            f"Idempotency-Key {shown(call.request_id)} belongs to a request with another body; "
            "choose another key for this one",
            code="idempotency_key_reused",
        )


def with_known(sampling: SamplingParams, known: RequestSpec) -> SamplingParams:
    """What the body leaves open is as it was drawn or computed for the request that is known."""
    filled = SamplingParams()
    filled.CopyFrom(sampling)
    if not sampling.HasField("seed"):
        filled.seed = known.sampling.seed
    if not sampling.HasField("max_tokens"):
        filled.max_tokens = known.sampling.max_tokens
    return filled
