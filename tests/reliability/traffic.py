"""Streams without end through a real client, each token compared with what an undisturbed cluster gave."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ryzanstein_client import AsyncClient
from ryzanstein_client.types import RequestOptions


@dataclass(frozen=True, slots=True)
class Request:
    """Complete with its seed: the same one gives the same tokens."""

    prompt: tuple[int, ...]
    options: RequestOptions


def sampled_requests(
    count: int, *, seed: int, vocab_size: int, prompt_tokens: int = 300, tokens: int = 200
) -> list[Request]:
    """Prompts of up to `prompt_tokens` random ids, half of them greedy, none of which ends by itself."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        prompt = tuple(draw.randrange(5, vocab_size) for _ in range(draw.randint(1, prompt_tokens)))
        temperature = draw.choice([0.0, 1.0])
        options: RequestOptions = {
            "max_tokens": draw.randint(tokens // 2, tokens),
            "temperature": temperature,
            "seed": number,
            "ignore_eos": True,
        }
        requests.append(Request(prompt, options))
    return requests


@dataclass(slots=True)
class Stream:
    """One place in the crowd: it sends one request after another."""

    number: int
    #: When tokens came, on time.monotonic.
    arrivals: list[float] = field(default_factory=list)
    running: bool = False
    finished: int = 0

    def stall_s(self, fault_at: float) -> float:
        """From the fault until the end of the longest silence after it."""
        after = [at for at in self.arrivals if at > fault_at]
        before = [fault_at, *after]
        gaps = [(later - earlier, later) for earlier, later in itertools.pairwise(before)]
        return max(gaps, default=(0.0, fault_at))[1] - fault_at


class Traffic:
    """`streams` places that are never empty, for as long as the block lasts. `failures` must stay empty."""

    def __init__(
        self, address: str, requests: Sequence[Request], *, streams: int, api_key: str | None = None
    ) -> None:
        self._address = address
        self._api_key = api_key
        self._requests = list(requests)
        self._reference: dict[int, tuple[int, ...]] = {}
        self.streams = [Stream(number) for number in range(streams)]
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="traffic", daemon=True)
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._learn(), self._loop).result(120)
        except BaseException:
            self._stop()
            raise
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        assert self._running is not None
        try:
            self._running.result(120)
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def tokens(self) -> int:
        """Delivered so far, to all streams."""
        return sum(len(stream.arrivals) for stream in self.streams)

    @property
    def finished(self) -> int:
        """Requests that were compared to their last token."""
        return sum(stream.finished for stream in self.streams)

    def pause(self, timeout_s: float = 60.0) -> None:
        """Until every stream is at its end; no other is begun before `go_on`."""
        self._flows.clear()
        deadline = time.monotonic() + timeout_s
        while any(stream.running for stream in self.streams):
            assert time.monotonic() < deadline, "streams don't end"
            time.sleep(0.005)

    def go_on(self) -> None:
        self._flows.set()

    def wait_for_flow(self, tokens: int = 5, timeout_s: float = 60.0) -> None:
        """Until every stream got so many more tokens."""
        before = [len(stream.arrivals) for stream in self.streams]
        deadline = time.monotonic() + timeout_s
        while any(
            len(stream.arrivals) < count + tokens for stream, count in zip(self.streams, before, strict=True)
        ):
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, "streams stand still"
            time.sleep(0.005)

    def stalls_s(self, fault_at: float) -> list[float]:
        """For each stream, from the fault until its next token after the longest silence."""
        return [stream.stall_s(fault_at) for stream in self.streams]

    def first_token_at(self, since: float) -> float:
        """When any stream got its first token after this moment."""
        return min(at for stream in self.streams for at in stream.arrivals if at > since)

    async def _learn(self) -> None:
        async with AsyncClient(self._address, api_key=self._api_key, connect_timeout_s=60) as client:
            completions = await asyncio.gather(
                *(client.generate(list(request.prompt), **request.options) for request in self._requests)
            )
        self._reference = {
            number: tuple(completion.token_ids) for number, completion in enumerate(completions)
        }

    async def _run(self) -> None:
        async with AsyncClient(self._address, api_key=self._api_key, connect_timeout_s=60) as client:
            await asyncio.gather(*(self._keep_asking(client, stream) for stream in self.streams))

    async def _keep_asking(self, client: AsyncClient, stream: Stream) -> None:
        stream.running = True
        for number in itertools.count(stream.number):
            if self._ending.is_set():
                return
            stream.running = False
            while not self._flows.is_set():
                if self._ending.is_set():
                    return
                await asyncio.sleep(0.01)
            stream.running = True
            which = number % len(self._requests)
            request, expected = self._requests[which], self._reference[which]
            tokens: list[int] = []
            try:
                async for chunk in client.stream(list(request.prompt), **request.options):
                    stream.arrivals += [time.monotonic()] * bool(chunk.token_ids)
                    tokens += chunk.token_ids
            except Exception as error:  # noqa: BLE001 - every failure of a stream is what is looked for
                self.failures.append(f"request {which} after {len(tokens)} tokens: {error!r}")
                return
            if tuple(tokens) != expected:
                place = next(
                    (i for i, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]),
                    min(len(tokens), len(expected)),
                )
                self.failures.append(
                    f"request {which}: {len(tokens)} of {len(expected)} tokens, differs at {place}"
                )
                return
            stream.finished += 1
