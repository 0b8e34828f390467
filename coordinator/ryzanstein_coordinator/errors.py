"""Statuses of the request path that `ryzanstein.wire` has no helper for. All are `StatusError`s.

StatusError
  INVALID_ARGUMENT     the request is wrong: a field, its value, what is allowed (wire.invalid_argument)
  NOT_FOUND            no such model or request                                  (wire.not_found)
  ALREADY_EXISTS       the request id lives
  FAILED_PRECONDITION  the caller's tokens are not those of the request
  RESOURCE_EXHAUSTED   the queue is full, with a retry delay                     (wire.resource_exhausted)
  UNAVAILABLE          no group, or draining, with a retry delay                 (wire.unavailable)
  DEADLINE_EXCEEDED    the request's own timeout or the call's deadline
  CANCELLED            somebody cancelled the request
  INTERNAL             the engine failed on it
"""

from __future__ import annotations

import grpc

from ryzanstein.wire import StatusError, invalid_argument

#: Longest piece of a user's value that is repeated in a message.
_SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """A user's value as a message may repeat it: in quotes if text, and short."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def out_of_range(field: str, value: object, allowed: str) -> StatusError:
    """INVALID_ARGUMENT that names the field, the value and what is allowed."""
    return invalid_argument(f"{field} is {shown(value)}; it must be {allowed}")


def already_exists(request_id: str) -> StatusError:
    """A second Generate with the id of a living request."""
    return StatusError(
        grpc.StatusCode.ALREADY_EXISTS,
        f"request {shown(request_id)} is being generated; use Attach to go on with it, or choose "
        "another request_id",
    )


def failed_precondition(message: str) -> StatusError:
    """The request can't be served in the state in which things are."""
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)


def deadline_exceeded(message: str) -> StatusError:
    """The request's time was over before its last token."""
    return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def cancelled(message: str) -> StatusError:
    """Somebody ended the request."""
    return StatusError(grpc.StatusCode.CANCELLED, message)


def internal(message: str) -> StatusError:
    """A failure of ours that the caller should hear about in words."""
    return StatusError(grpc.StatusCode.INTERNAL, message)
