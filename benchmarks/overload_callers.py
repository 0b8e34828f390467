"""Clients that cost little: what `benchmarks.overload` asks with, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import grpc

from ryzanstein.v1 import inference_pb2, inference_pb2_grpc
from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import CHANNEL_OPTIONS


@dataclass(slots=True)
class Asked:
    """What became of one request. Seconds since it was sent."""

    #: One for each token.
    moments_s: list[float] = field(default_factory=list)
    #: When it was sent away, if it was.
    refused_s: float | None = None
    #: Any other end.
    failure: str = ""


class Caller(Protocol):
    """Any number of requests at a time."""

    async def ask(self, prompt: str, tokens: int) -> Asked:
        """One stream to its end. Never raises."""

    async def close(self) -> None:
        """Closes its connections."""


class HttpCaller:
    """/v1/completions, streamed, over connections that are used again."""

    def __init__(self, base_url: str, *, logprobs: bool = False) -> None:
        """`logprobs`: are asked for. A token without text is sent only with one."""
        self._asks: dict[str, object] = {"temperature": 0, "ignore_eos": True, "stream": True}
        if logprobs:
            self._asks["logprobs"] = 0
        where = urlsplit(base_url)
        self._host, self._port = where.hostname or "", where.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, prompt: str, tokens: int) -> Asked:
        asked = Asked()
        data = json.dumps({"prompt": prompt, "max_tokens": tokens, **self._asks}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        begun = time.perf_counter()
        try:
            connection = self._still_open() or await self._connect()
            reader, writer = connection
            writer.write(head.encode() + data)
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(reply.split(b" ", 2)[1])
            if status == 200:
                await _read_events(reader, asked, begun)
            else:
                length = int(reply.split(b"content-length: ")[1].split(b"\r\n")[0])
                answer = await reader.readexactly(length)
                if status in (429, 503):
                    asked.refused_s = time.perf_counter() - begun
                else:
                    asked.failure = f"{status}: {answer.decode()}"
            if b"connection: close" in reply:
                writer.close()
            else:
                self._idle.append(connection)
        except (OSError, EOFError, ValueError, IndexError) as error:
            asked.failure = repr(error)
        return asked

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    def _still_open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Of those that rest: servers close them after some seconds without a request."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)


async def _read_events(reader: asyncio.StreamReader, asked: Asked, begun: float) -> None:
    """Chunked server-sent events, to the last chunk."""
    while size := int(await reader.readline(), 16):
        part = await reader.readexactly(size + 2)
        if b'"text":' in part:
            # One event may have several tokens; the last has none and says why it ended.
            if b'"finish_reason":null' in part:
                asked.moments_s.append(time.perf_counter() - begun)
        elif b'"error"' in part:
            asked.failure = part.decode()
    await reader.readline()


class GrpcCaller:
    """Generate, over a few connections."""

    def __init__(self, address: str, connections: int = 4) -> None:
        self._channels = [
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for _ in range(connections)
        ]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels]
        self._asked = 0

    async def ask(self, prompt: str, tokens: int) -> Asked:
        asked = Asked()
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        request = inference_pb2.GenerateRequest(text=prompt, sampling=sampling)
        self._asked += 1
        begun = time.perf_counter()
        try:
            async for response in self._stubs[self._asked % len(self._stubs)].Generate(request):
                if response.event.HasField("tokens"):
                    asked.moments_s.append(time.perf_counter() - begun)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                asked.refused_s = time.perf_counter() - begun
            else:
                asked.failure = f"{error.code()}: {error.details()}"
        return asked

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
