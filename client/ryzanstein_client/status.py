"""gRPC statuses as the library's own exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc

from ryzanstein.wire import RETRY_AFTER_KEY

from .errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QueueFull,
    RyzansteinError,
    Unauthenticated,
    Unavailable,
)

_SIMPLE: dict[grpc.StatusCode, type[RyzansteinError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}

#: How gRPC says that there is no connection: the cause stands at the end of three layers of wrapping.
_NO_CONNECTION = re.compile(r"^failed to connect to all addresses.*: ([^:]+?)(?: \(\d+\))?$")

#: Seconds to wait when a server with a full queue gives no advice.
_DEFAULT_RETRY_AFTER_S = 1.0


class CallFailed(Exception):  # noqa: N818 - an event to decide on, more than an error
    """A call ended without its result: the raw status, before anybody decided what it means."""

    def __init__(self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @classmethod
    def unusable(cls, reason: str) -> CallFailed:
        """A stream that ended early or skipped tokens: worth the same patience as a lost connection."""
        return cls(grpc.StatusCode.UNAVAILABLE, f"unusable stream: {reason}")

    @property
    def broken(self) -> bool:
        """Whether the connection failed, rather than the server refused.

        A server of ours that is unavailable says when to try again; gRPC itself never does. The other cases
        are what gRPC makes of a stream that was reset under way.
        """
        match self.code:
            case grpc.StatusCode.UNAVAILABLE:
                return self.retry_after_s is None
            case grpc.StatusCode.CANCELLED:  # a server of ours names the request that was cancelled
                return self.message in ("", "CANCELLED") or self.message.startswith("Received RST_STREAM")
            case grpc.StatusCode.INTERNAL:
                return not self.message or self.message.startswith("Received RST_STREAM")
            case grpc.StatusCode.UNKNOWN:
                return not self.message or "Stream removed" in self.message
        return False

    @property
    def postponed(self) -> bool:
        """Whether the server itself says to come back."""
        return self.retry_after_s is not None and self.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )

    def __str__(self) -> str:
        refused = _NO_CONNECTION.search(self.message)
        if (
            refused and refused[1] == "Socket closed"
        ):  # all that gRPC says of a handshake that the other side refused
            return "it closed the connection: perhaps it speaks TLS, or wants to see a certificate"
        if refused:
            return refused[1].lower()
        return f"{self.code.name}: {self.message}" if self.message else self.code.name


def call_failed(
    code: grpc.StatusCode | None, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> CallFailed:
    """The failure of a call from its code, details and trailing metadata."""
    retry_after_s = None
    for key, value in metadata or ():
        if key == RETRY_AFTER_KEY:
            retry_after_s = int(value) / 1000
    return CallFailed(code or grpc.StatusCode.UNKNOWN, details or "", retry_after_s)


def error_from(failure: CallFailed) -> RyzansteinError:
    """What the caller of the library gets for it."""
    message = failure.message or failure.code.name
    kind = _SIMPLE.get(failure.code)
    if kind is not None:
        return kind(message)
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if (
            failure.retry_after_s is None and "larger than max" in message
        ):  # refused by gRPC, not by our queue
            return InvalidRequest(message, hint="send a shorter prompt")
        return QueueFull(message, retry_after_s=failure.retry_after_s or _DEFAULT_RETRY_AFTER_S)
    if failure.code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(message, retry_after_s=failure.retry_after_s)
    if failure.code is grpc.StatusCode.UNIMPLEMENTED:
        return InternalError(message, hint="is this a Ryzanstein coordinator of the same release?")
    return InternalError(message)
