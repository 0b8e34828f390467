"""Which request takes its group along, and what becomes of it. Pure, but for the requests' own counts.

A request that breaks its group each time (it crashes a kernel, gives NaN, needs too much memory) would be submitted
again with all the others, for ever. Nobody can see which one it was; but whoever gets a token is innocent. So breaks
are counted since the last token. After two a request is a suspect, and suspects are submitted one at a time, those
first that were least often alone when the group broke: an innocent one has its token at the next step. What breaks
the group while it is the only suspect, again and again, is given up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import grpc

from ryzanstein.wire import StatusError

from .errors import internal
from .group_record import Cause
from .requests import Ending, RequestRecord

#: What a request can cause. A device counts: a kernel that reads where it must not costs the process its context.
#: A lease, a stream, a drain or a change of size say nothing about the requests.
COUNTED = frozenset({Cause.PROCESS, Cause.COLLECTIVE, Cause.ENGINE, Cause.MEMORY, Cause.STUCK, Cause.DEVICE})
#: A request whose group broke so often as the only suspect there is given up.
MOST_ALONE = 3


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A request that ends, so that the others can go on."""

    record: RequestRecord
    ending: Ending


def after_break(there: Collection[RequestRecord], cause: Cause | None, reason: str) -> list[GivenUp]:
    """Counts a break for all that were submitted to the group; returns those that must end."""
    if cause not in COUNTED:
        return []
    suspects = [record for record in there if record.suspicion.is_suspect]
    for record in there:
        record.suspicion.breaks += 1
    given_up = []
    if len(suspects) == 1:
        suspicion = suspects[0].suspicion
        suspicion.alone += 1
        if suspicion.alone >= MOST_ALONE:
            error = internal(
                f"the group broke {suspicion.breaks} times while it computed this request: {reason}"
            )
            given_up.append(GivenUp(suspects[0], Ending("error", error=error)))
    if cause is Cause.MEMORY:
        given_up += _make_room(
            [record for record in there if all(record is not up.record for up in given_up)]
        )
    return given_up


def next_held(held: Iterable[RequestRecord], running: Collection[RequestRecord]) -> RequestRecord | None:
    """The request of those held back that may join what runs in a group; None: not yet, or none."""
    if any(record.suspicion.is_held for record in running):
        return None
    record = min(held, key=_order, default=None)
    if record is None or not record.suspicion.preempted:
        return record
    # It was pre-empted so that the others can go on: they have, when each has a token.
    return None if any(other.suspicion.breaks for other in running) else record


def _make_room(there: Collection[RequestRecord]) -> list[GivenUp]:
    """Memory ran out: the largest request goes on last, and ends if that does not help."""
    again = [record for record in there if record.suspicion.preempted]
    largest = max(again or there, key=lambda record: (record.replay_tokens, record.arrival), default=None)
    if largest is None:
        return []
    if not again:
        largest.suspicion.preempted = True
        return []
    tokens = largest.replay_tokens
    error = StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"out of memory, twice, with this request of {tokens} tokens ({len(largest.spec.prompt)} of the prompt, "
        f"{len(largest.output)} generated); send a shorter one, or give the workers more memory",
    )
    return [GivenUp(largest, Ending("error", error=error))]


def _order(record: RequestRecord) -> tuple[bool, int, int, int]:
    suspicion = record.suspicion
    return suspicion.preempted, suspicion.alone, record.replay_tokens, record.arrival
