"""Which request takes its group along, and what becomes of it. Pure, but for the requests' own counts.

A request that breaks its group each time (it crashes a kernel, gives NaN, needs too much memory) would be submitted
again with all the others, for ever. Nobody can see which one it was; but whoever was computed further is innocent. So
breaks are counted until a request has two tokens from one submission: the first comes from its prefill, which may
work where its decoding does not. After two breaks it is a suspect, and suspects are submitted one at a time, those
first that were least often alone when the group broke: an innocent one is cleared within two steps.

A break with one suspect says little while others run beside it: one of those may look innocent because it gets a
token each time. So whoever was the only suspect once needs isolation: from then on it is computed with nothing beside
it, before everything else, until it is cleared, ends, or breaks the group once more. What breaks its group as the
only suspect, and then alone again and again, is given up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ryzanstein.wire import invalid_argument

from .errors import internal
from .group_record import Cause
from .requests import Ending, RequestRecord

#: What a request can cause. A device counts: a kernel that reads where it must not costs the process its context.
#: A lease, a stream, a drain or a change of size say nothing about the requests.
COUNTED = frozenset({Cause.PROCESS, Cause.COLLECTIVE, Cause.ENGINE, Cause.MEMORY, Cause.STUCK, Cause.DEVICE})
#: A request whose group broke so often as the only suspect there, and but for the first time as the only request
#: there, is given up.
MOST_ALONE = 3

#: Tokens from one submission after which a request breaks nothing: one of its prefill, one of decoding.
_INNOCENT_TOKENS = 2


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A request that ends, so that the others can go on."""

    record: RequestRecord
    ending: Ending


def is_innocent(record: RequestRecord, new_tokens: int) -> bool:
    """Whether a request that gets so many tokens now has been computed far enough since it was submitted."""
    return len(record.output) + new_tokens - record.tokens_at_submission >= _INNOCENT_TOKENS


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
        if not suspicion.needs_isolation or len(there) == 1:
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


def next_held(
    held: Iterable[RequestRecord], running: Collection[RequestRecord], *, may_isolate: bool = True
) -> RequestRecord | None:
    """The request of those held back that may be computed in a group; None: not yet, or none. If it needs isolation
    what runs there must go first; unless the group `may_isolate`, such a request goes on waiting."""
    if any(record.suspicion.needs_isolation for record in running):
        return None
    allowed = (record for record in held if may_isolate or not record.suspicion.needs_isolation)
    record = min(allowed, key=_order, default=None)
    if record is None or record.suspicion.needs_isolation:
        return record
    if any(other.suspicion.is_held for other in running):
        return None
    if not record.suspicion.preempted:
        return record
    # It was pre-empted so that the others can go on: they have, when each is cleared.
    return None if any(other.suspicion.breaks for other in running) else record


def _make_room(there: Collection[RequestRecord]) -> list[GivenUp]:
    """Memory ran out: the largest request goes on last, and ends if it is the largest still when it runs out again."""
    largest = max(there, key=lambda record: (record.replay_tokens, record.arrival), default=None)
    if largest is None:
        return []
    if not largest.suspicion.preempted:
        largest.suspicion.preempted = True
        return []
    tokens = largest.replay_tokens
    # Not RESOURCE_EXHAUSTED: clients take that for a full queue, and would break the group with it again.
    error = invalid_argument(
        f"this request of {tokens} tokens ({len(largest.spec.prompt)} of the prompt, {len(largest.output)} generated) "
        "is too large for the workers' memory, which ran out with it twice; send a shorter one, or give the workers "
        "more memory",
    )
    return [GivenUp(largest, Ending("error", error=error))]


def _order(record: RequestRecord) -> tuple[bool, bool, int, int, int]:
    suspicion = record.suspicion
    return (
        not suspicion.needs_isolation,
        suspicion.preempted,
        suspicion.alone,
        record.replay_tokens,
        record.arrival,
    )
