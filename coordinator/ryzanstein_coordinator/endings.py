"""Ends of requests that several parts know, in words for callers and names for the metrics."""

from __future__ import annotations

import grpc

from ryzanstein.wire import StatusError, unavailable

from .errors import deadline_exceeded
from .requests import Ending, RequestRecord

#: The queue is full, the deadline can't be met, or the server drains.
_REFUSED = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
}


def deadline_ending(record: RequestRecord) -> Ending:
    """Its time is over."""
    allowed_s = 0.0 if record.deadline_at is None else record.deadline_at - record.timings.admitted_at
    error = deadline_exceeded(
        f"the request was not done within {allowed_s:.3g} s; {len(record.output)} tokens were generated"
    )
    return Ending("deadline", error=error)


def restart_ending() -> Ending:
    """It was unfinished when a former life of the coordinator ended."""
    error = unavailable("the coordinator was started again; attach to go on")
    return Ending("unavailable", error=error, revivable=True)


def late_restart_ending() -> Ending:
    """The same, and its time was over before this life began."""
    error = deadline_exceeded("the request's time was over while the coordinator was not running")
    return Ending("deadline", error=error)


def refused_outcome(error: StatusError) -> str:
    """What the metrics call a request that was not admitted for this reason: one of `observers.OUTCOMES`."""
    if error.code in _REFUSED:
        return "refused"
    return "cancelled" if error.code is grpc.StatusCode.CANCELLED else "invalid"
