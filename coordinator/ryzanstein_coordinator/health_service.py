"""grpc.health.v1 with the same truth as /readyz: asked anew at every check, never a status that was set once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ryzanstein.wire import not_found

Context = grpc.aio.ServicerContext[Any, Any]

#: How often a watched status is looked at: a death is known to the orchestrator within 50 ms.
_POLL_S = 0.05

_SERVING: int = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`readiness` says whether a request sent now would be generated."""

    def __init__(
        self, readiness: Callable[[], tuple[bool, str]], *, inference: str, others: tuple[str, ...]
    ) -> None:
        """
        Args:
            readiness: the verdict and its reason.
            inference: full name of the service that is ready only then; the empty name (the server) goes with it.
            others: full names of the services that serve for as long as the process does.
        """
        self._readiness = readiness
        self._ready_services = frozenset({"", inference})
        self._others = frozenset(others)

    async def Check(  # noqa: N802 - the name is the protocol's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            known = ", ".join(sorted(self._others | self._ready_services - {""}))
            raise not_found(f"there is no service {request.service!r}; services are: {known}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_POLL_S)

    def _status(self, service: str) -> int:
        if service in self._ready_services:
            return _SERVING if self._readiness()[0] else _NOT_SERVING
        return _SERVING if service in self._others else _UNKNOWN
