"""Failures as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import grpc
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ryzanstein.wire import StatusError

_Status = grpc.StatusCode

INVALID = "invalid_request_error"

#: Status → HTTP status, type, code. A request whose key or tokens belong to another is 400 and not 409, which
#: OpenAI's own clients send again.
_KINDS: dict[grpc.StatusCode, tuple[int, str, str | None]] = {
    _Status.INVALID_ARGUMENT: (400, INVALID, None),
    _Status.FAILED_PRECONDITION: (400, INVALID, "failed_precondition"),
    _Status.ALREADY_EXISTS: (400, INVALID, "request_in_progress"),
    _Status.UNAUTHENTICATED: (401, "authentication_error", "invalid_api_key"),
    _Status.PERMISSION_DENIED: (403, "permission_error", "insufficient_role"),
    _Status.NOT_FOUND: (404, INVALID, "not_found"),
    _Status.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "rate_limit_exceeded"),
    _Status.CANCELLED: (499, INVALID, "cancelled"),
    _Status.UNAVAILABLE: (503, "server_error", "unavailable"),
    _Status.DEADLINE_EXCEEDED: (504, "server_error", "deadline_exceeded"),
}
_INTERNAL = (500, "server_error", "internal_error")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A failure, ready to be sent."""

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to come back: in whole seconds for everybody, in milliseconds for OpenAI's clients."""
        if self.retry_after_s is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }

    def response(self) -> Response:
        # In ASCII: a message may repeat half of a surrogate pair that a client sent.
        text = json.dumps(self.body)
        return Response(text, self.status, self.headers, media_type="application/json")


class BadRequestError(Exception):
    """A field of the request's body is wrong."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.reply = ErrorReply(400, message, param=param, code=code)


class UnknownModelError(Exception):
    """No model of that name is served."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply = ErrorReply(404, message, param="model", code="model_not_found")


def reply_of(error: StatusError) -> ErrorReply:
    """The status of the request path as HTTP has it."""
    status, kind, code = _KINDS.get(error.code, _INTERNAL)
    return ErrorReply(status, error.message, kind, code=code, retry_after_s=error.retry_after_s)


def internal_reply(error: BaseException) -> ErrorReply:
    """For a defect of ours: its type, not its text."""
    status, kind, code = _INTERNAL
    return ErrorReply(status, f"internal error ({type(error).__name__})", kind, code=code)


def reply_of_validation(error: RequestValidationError) -> ErrorReply:
    """The first thing that is wrong with a body, by the name of its field."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]  # the first says where: body, query, path
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "it ends too early")
        return ErrorReply(400, f"the body is not JSON: {why} (at character {place[-1] if place else 0})")
    if not place:
        return ErrorReply(400, "the body must be a JSON object; send it with content-type: application/json")
    reason = str(first["msg"]).removeprefix("Value error, ")
    return ErrorReply(400, f"{'.'.join(place)}: {reason}", param=place[0])


def install_errors(app: FastAPI) -> None:
    """Makes every failure of the application an OpenAI body. The `Edge` logs those that nobody expected."""

    async def status(_: Request, error: Exception) -> Response:
        return reply_of(cast("StatusError", error)).response()

    async def own(_: Request, error: Exception) -> Response:
        return cast("BadRequestError | UnknownModelError", error).reply.response()

    async def validation(_: Request, error: Exception) -> Response:
        return reply_of_validation(cast("RequestValidationError", error)).response()

    async def http(_: Request, error: Exception) -> Response:
        failure = cast("HTTPException", error)
        message = str(failure.detail or HTTPStatus(failure.status_code).phrase)
        response = ErrorReply(failure.status_code, message).response()
        response.headers.update(failure.headers or {})
        return response

    async def defect(_: Request, error: Exception) -> Response:
        return internal_reply(error).response()

    app.add_exception_handler(Exception, defect)
    app.add_exception_handler(StatusError, status)
    app.add_exception_handler(BadRequestError, own)
    app.add_exception_handler(UnknownModelError, own)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
