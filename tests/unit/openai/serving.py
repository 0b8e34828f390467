"""The OpenAI paths before the request path that the other unit tests use; on a real HTTP server for those who cut
connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from ryzanstein_coordinator.chat_template import ChatTemplate
from ryzanstein_coordinator.http_server import HttpServer, bind
from ryzanstein_coordinator.openai import EarlyRefusal, Edge, install_errors, openai_routes
from ryzanstein_coordinator.tokenization import ModelTokenizer

from ..requests.cluster import RequestPath
from ..requests.trained_tokenizers import byte_level

TEMPLATE = "{% for m in messages %}<|user|>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
TOKENIZER = ModelTokenizer(byte_level(), ChatTemplate(TEMPLATE, {}))

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class Event:
    """One server-sent event. `data` is "[DONE]" or an object; `kind` is empty unless it has a name."""

    event_id: str
    kind: str
    data: Any


@dataclass
class Front:
    """A request path with HTTP before it. The first `connect` starts the server."""

    path: RequestPath
    app: Edge
    client: httpx.AsyncClient
    _server: HttpServer | None = None
    _serving: asyncio.Task[None] | None = None
    _port: int = 0

    async def post(self, where: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post(where, json=body, headers=headers)

    async def ok(self, where: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """The body of a reply that is 200."""
        reply = await self.post(where, headers, **body)
        assert reply.status_code == 200, reply.text
        loaded: dict[str, Any] = reply.json()
        return loaded

    async def events(self, where: str, headers: dict[str, str] | None = None, **body: Any) -> list[Event]:
        """All events of a stream."""
        reply = await self.post(where, headers, stream=True, **body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return parse_events(reply.text)

    async def connect(
        self, where: str, headers: dict[str, str] | None = None, **body: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A socket that has sent the request, to be cut whenever a test likes."""
        if self._server is None:
            listener = bind("127.0.0.1", 0, flag="--http-port")
            self._port = listener.getsockname()[1]
            self._server = HttpServer(self.app, listener)
            self._serving = asyncio.create_task(self._server.run_until_stopped())
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        data = json.dumps(body).encode()
        lines = [
            f"POST {where} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            f"content-length: {len(data)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()
        return reader, writer

    async def close(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.stop()
            await self._serving


@asynccontextmanager
async def front(path: RequestPath) -> AsyncIterator[Front]:
    app = FastAPI()
    install_errors(app)
    app.include_router(openai_routes(path.front_door, path.intake))
    edge = Edge(EarlyRefusal(app, path.front_door))
    keeping_time = asyncio.create_task(path.front_door.run())
    # A defect's reply is looked at as a client would get it.
    transport = httpx.ASGITransport(edge, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20.0) as client:
        served = Front(path, edge, client)
        try:
            yield served
        finally:
            await served.close()
            keeping_time.cancel()
            path.router.close()
            path.intake.close()


def parse_events(text: str) -> list[Event]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            data = fields["data"]
            parsed = data if data == "[DONE]" else json.loads(data)
            events.append(Event(fields.get("id", ""), fields.get("event", ""), parsed))
    return events


def text_of(events: list[Event], choice: int = 0) -> str:
    """What a client shows of one choice of a stream, chat or not."""
    choices = (one for event in events if event.data != "[DONE]" for one in event.data["choices"])
    return "".join(
        one["text"] if "text" in one else one["delta"].get("content", "")
        for one in choices
        if one["index"] == choice
    )
