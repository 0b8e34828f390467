"""The coordinator's rendezvous on a port of its own, for ranks that are real processes."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

import grpc

from ryzanstein.v1 import cluster_pb2_grpc
from ryzanstein.wire import SERVER_OPTIONS, StatusInterceptor
from ryzanstein_coordinator.rendezvous import RendezvousServicer, RendezvousStore


class RendezvousServer:
    """Serves in a thread; `store` may be used through `open` and `close_attempt` from any other."""

    def __init__(self) -> None:
        self.store = RendezvousStore()
        self.defects: list[BaseException] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rendezvous", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.address = f"127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(None), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open(self, group_id: str, epoch: int, nonce: str) -> None:
        """As the orchestrator does before it calls JoinGroup."""
        self._on_loop(self.store.open, group_id, epoch, nonce)

    def close_attempt(self, group_id: str) -> None:
        """As the orchestrator does when an attempt is over."""
        self._on_loop(self.store.close, group_id)

    def _on_loop(self, function: object, *arguments: object) -> None:
        async def call() -> None:
            function(*arguments)  # type: ignore[operator]

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _start(self) -> int:
        interceptor = StatusInterceptor(lambda _, error: self.defects.append(error))
        self._server = grpc.aio.server(interceptors=[interceptor], options=SERVER_OPTIONS)
        cluster_pb2_grpc.add_RendezvousServiceServicer_to_server(RendezvousServicer(self.store), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port
