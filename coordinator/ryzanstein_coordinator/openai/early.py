"""Sends requests away before their bodies are read, when there is no room for any: under a flood that is most of them,
and reading them would take time from those that are generated."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ..access import http_caller
from ..front_door import FrontDoor


def refusing_early(front_door: FrontDoor) -> type[APIRoute]:
    """The class of routes that generate. A request with an idempotency key is read: it may go on with another."""

    class EarlyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def refuse_or_handle(request: Request) -> Response:
                # A connection that ends with its reply would end with a body on its way: the client sees it break.
                stays = request.scope.get("http_version") != "1.0" and (
                    request.headers.get("connection", "").lower() != "close"
                )
                if stays and "idempotency-key" not in request.headers:
                    front_door.check_room(http_caller(request.scope).name)
                return await handle(request)

            return refuse_or_handle

    return EarlyRoute
