"""What becomes of a recovery after its group stands again: the streams that waited go on, or nobody waits. Pure."""

from __future__ import annotations

from dataclasses import replace

from .events import FirstToken, RequestsResumed, ResumedGone
from .group_record import Recovery

#: A group that served for so long: the log tells what is known by then. A first token may take longer, after a replay
#: of many tokens.
CLOSED_AFTER_S = 2.0


def progressed(recovery: Recovery, event: FirstToken | RequestsResumed | ResumedGone) -> Recovery:
    """The recovery after this event of its epoch."""
    if isinstance(event, RequestsResumed):
        return replace(recovery, requests_resumed=recovery.requests_resumed + event.count, told=True)
    if recovery.is_complete:
        return recovery  # nobody waits any more: the next caller's first token is no part of it
    if isinstance(event, ResumedGone):
        return replace(recovery, resumed_gone=True)
    return replace(recovery, first_token_at_s=max(event.at_s, recovery.seen_at_s))


def closed(recovery: Recovery, served_s: float, *, stopping: bool) -> Recovery:
    """The recovery of a group that serves, closed if all is known of it, or if it is time."""
    if recovery.is_complete or served_s >= CLOSED_AFTER_S or stopping:
        return recovery if recovery.closed else replace(recovery, closed=True)
    return recovery
