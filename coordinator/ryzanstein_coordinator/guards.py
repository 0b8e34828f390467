"""Before every call, gRPC or HTTP: may this caller call this? What is refused is not read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ryzanstein.join_calls import bound_to_message, join_refusal, metadata_value
from ryzanstein.join_proof import ProofVerifier
from ryzanstein.wire import StatusError, refused_handler

from .access import CALLER, NOBODY, Access, Caller, access_to_method, access_to_path, identify
from .api_keys import KeyRing
from .openai.errors import reply_of

log = structlog.get_logger(__name__)

_AUTHORIZATION = "authorization"

#: One line for all refusals of so long: strangers must not fill the disk.
_LOG_EVERY_S = 10.0


class RefusalLog:
    """Says how many calls were refused, on the first and then at most every ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._next_at_s = clock()

    def refused(self, what: str, reason: str) -> None:
        self._count += 1
        if self._clock() >= self._next_at_s:
            log.warning("calls_refused", calls=self._count, last=what, reason=reason)
            self._count = 0
            self._next_at_s = self._clock() + _LOG_EVERY_S


class GrpcGuard(grpc.aio.ServerInterceptor):
    """The first interceptor of the coordinator's server."""

    def __init__(self, keys: KeyRing | None, members: ProofVerifier | None, refusals: RefusalLog) -> None:
        """
        Args:
            keys: None: no key is asked for.
            members: checks who joins. None: a certificate, or nothing, has done that.
        """
        self._keys = keys
        self._members = members
        self._refusals = refusals

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        refusal = self._refusal(handler_call_details)
        if refusal is None:
            handler = await continuation(handler_call_details)
            proven = (
                self._members is not None and access_to_method(handler_call_details.method) is Access.MEMBER
            )
            return bound_to_message(handler, handler_call_details) if proven else handler
        self._refusals.refused(handler_call_details.method, refusal.message)
        return refused_handler(refusal)

    def _refusal(self, call: grpc.HandlerCallDetails) -> StatusError | None:
        access = access_to_method(call.method)
        if access is Access.MEMBER:
            return None if self._members is None else join_refusal(self._members, call)
        try:
            identify(self._keys, access, metadata_value(call, _AUTHORIZATION), call.method)
        except StatusError as error:
            return error
        return None


class HttpGuard:
    """ASGI middleware, below `Edge`, so that a refusal has its request id."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, refusals: RefusalLog) -> None:
        """`keys`: None: no key is asked for."""
        self._app = app
        self._keys = keys
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        given = Headers(scope=scope).getlist(_AUTHORIZATION)
        access = access_to_path(path)
        try:
            caller = identify(self._keys, access, given[0] if len(given) == 1 else None, path)
        except StatusError as error:
            self._refusals.refused(path, error.message)
            response = reply_of(error).response()
            if error.code is grpc.StatusCode.UNAUTHENTICATED:
                response.headers["www-authenticate"] = "Bearer"
            response.headers["connection"] = "close"  # what is left of the body is not read
            await response(scope, receive, send)
            return
        scope[CALLER] = caller
        await self._app(scope, receive, send)


def grpc_caller(keys: KeyRing | None, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Who makes a call that the guard let pass. Raises StatusError if the key was taken away since."""
    if keys is None:
        return NOBODY
    values = [value for name, value in context.invocation_metadata() or () if name == _AUTHORIZATION]
    given = values[0] if len(values) == 1 and isinstance(values[0], str) else None
    return identify(keys, Access.ANY_KEY, given, "this")
