"""Everything that can go wrong, as the caller of the library sees it.

    RyzansteinError
      InvalidRequest       the request itself is wrong: a field, its value, what is allowed
      Unauthenticated      no API key, or one that the server doesn't know
      PermissionDenied     the API key is known, but not for this
      NotFound             no such model, request or worker
      AlreadyExists        the request id is in use
      FailedPrecondition   the server is in another state than the caller thinks (an epoch that is over)
      QueueFull            too many requests wait; `.retry_after_s`
      DeadlineExceeded     the request's time was over before its last token
      Cancelled            somebody cancelled the request
      Unavailable          nothing can be generated now; `.retry_after_s`
        Disconnected       the coordinator could not be reached, or not again; `.tokens_received`, `.attempts`
      InternalError        a defect on the server's side

Each has `.message` (what and where), `.hint` (what to do; may be empty) and `.code` (the name of the gRPC
status). `str(error)` is one line with message and hint.
"""

# ruff: noqa: N818 - `except QueueFull` reads better than `except QueueFullError`

from __future__ import annotations

from typing import ClassVar


class RyzansteinError(Exception):
    """Base of every exception that this library raises on purpose."""

    #: Name of the gRPC status that this kind stands for.
    code: ClassVar[str] = "UNKNOWN"
    #: Exit code of a command that ends with it.
    exit_code: ClassVar[int] = 1
    _hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self._hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidRequest(RyzansteinError):
    """The request itself is wrong; sending it again can't help."""

    code = "INVALID_ARGUMENT"
    exit_code = 2


class Unauthenticated(RyzansteinError):
    """The server wants an API key, and none or an unknown one was given."""

    code = "UNAUTHENTICATED"
    exit_code = 2
    _hint = "give a key in the environment variable RYZANSTEIN_API_KEY, or with api_key=… or --api-key-file"


class PermissionDenied(RyzansteinError):
    """The server knows the API key, but its owner may not do this."""

    code = "PERMISSION_DENIED"
    exit_code = 2
    _hint = "use a key with that role"


class NotFound(RyzansteinError):
    """There is no such model, request or worker."""

    code = "NOT_FOUND"


class AlreadyExists(RyzansteinError):
    """Another request with this id is being generated."""

    code = "ALREADY_EXISTS"
    _hint = "choose another request_id, or none"


class FailedPrecondition(RyzansteinError):
    """The server is in another state than the caller thinks."""

    code = "FAILED_PRECONDITION"


class QueueFull(RyzansteinError):
    """Too many requests wait already. `retry_after_s` is the server's advice."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint if hint is not None else f"try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RyzansteinError):
    """The time given to the request was over before its last token."""

    code = "DEADLINE_EXCEEDED"
    _hint = "allow more time, or ask for fewer tokens"


class Cancelled(RyzansteinError):
    """The request was cancelled, by another call or by an operator."""

    code = "CANCELLED"


class Unavailable(RyzansteinError):
    """Nothing can be generated now. `retry_after_s` is the server's advice, or None."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        if hint is None and retry_after_s is not None:
            hint = f"try again in {retry_after_s:g} s"
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class Disconnected(Unavailable):
    """The coordinator could not be reached, or not again after the connection broke.

    `tokens_received` tokens of the stream were delivered before; `attempts` calls failed since.
    """

    exit_code = 69
    _hint = "is the coordinator running there?"

    def __init__(self, message: str, *, attempts: int, tokens_received: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.tokens_received = tokens_received


class InternalError(RyzansteinError):
    """A defect on the server's side, or an answer that breaks the protocol."""

    code = "INTERNAL"
    _hint = "the server's log has the cause"
