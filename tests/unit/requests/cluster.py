"""The request path as a coordinator has it, without the rest: front door, router, gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from ryzanstein.v1.inference_pb2_grpc import InferenceServiceStub, add_InferenceServiceServicer_to_server
from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.v1.shard_worker_pb2 import SchedulerStats
from ryzanstein.wire import CHANNEL_OPTIONS, SERVER_OPTIONS, StatusInterceptor
from ryzanstein_coordinator.admission import AdmissionLimits
from ryzanstein_coordinator.front_door import FrontDoor
from ryzanstein_coordinator.intake import GenerateCall, Intake
from ryzanstein_coordinator.output import TokenSpan
from ryzanstein_coordinator.prompts import ModelFacts, TokenPrompt
from ryzanstein_coordinator.request_log import RequestLog
from ryzanstein_coordinator.request_store import RetentionLimits
from ryzanstein_coordinator.requests import Ending, Subscription
from ryzanstein_coordinator.router import Router, RouterConfig
from ryzanstein_coordinator.service import InferenceServicer
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .leader import Leader
from .trained_tokenizers import byte_level

if TYPE_CHECKING:  # the name exists for type checkers only
    from ryzanstein.v1.inference_pb2_grpc import InferenceServiceAsyncStub

MODEL = ModelFacts(name="tiny", max_model_len=256, vocab_size=700, eos_token_ids=(699,), architecture="none")


class Clock:
    """Time stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Seen:
    """Everything that the request path reported."""

    ended: list[str] = field(default_factory=list)
    first_tokens: int = 0
    gaps: int = 0
    prompt: int = 0
    generated: int = 0
    queued: int = 0
    broken: list[tuple[str, int]] = field(default_factory=list)
    first_after_ready: list[int] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    flows: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    def request_ended(self, outcome: str, duration_s: float) -> None:
        assert duration_s >= 0
        self.ended.append(outcome)

    def request_queued(self, seconds: float) -> None:
        self.queued += 1

    def first_token(self, seconds: float) -> None:
        self.first_tokens += 1

    def inter_token_latency(self, seconds: float, count: int) -> None:
        self.gaps += count

    def prompt_tokens(self, count: int) -> None:
        self.prompt += count

    def generated_tokens(self, count: int) -> None:
        self.generated += count

    def step(self, group_id: str, stats: SchedulerStats, step_duration_s: float) -> None: ...

    def stream_broken(self, group_id: str, epoch: int, reason: str) -> None:
        self.broken.append((group_id, epoch))

    def stream_alive(self, group_id: str, epoch: int, *, flows: bool = False) -> None:
        (self.flows if flows else self.alive).append(epoch)

    def resumed_gone(self, group_id: str, epoch: int) -> None:
        self.gone.append(epoch)

    def first_token_after_ready(self, group_id: str, epoch: int, now_s: float) -> None:
        self.first_after_ready.append(epoch)


@dataclass
class RequestPath:
    router: Router
    intake: Intake
    front_door: FrontDoor
    seen: Seen
    clock: Clock

    def serve(self, leader: Leader, *, group: str = "g0") -> int:
        """The group is ready behind this leader."""
        return self.router.group_ready(group, leader.epoch, leader.stub, leader.limits)

    async def ask(
        self, prompt: list[int], *, request_id: str = "", timeout_s: float | None = None, **sampling: object
    ) -> Subscription:
        """A request with token ids and seed 0."""
        params = SamplingParams(**{"seed": 0, **sampling})  # type: ignore[arg-type]
        return await self.front_door.generate(
            GenerateCall(
                prompt=TokenPrompt(prompt), sampling=params, request_id=request_id, timeout_s=timeout_s
            )
        )


def request_path(
    *,
    tokenizer: ModelTokenizer | None = None,
    model: ModelFacts = MODEL,
    admission: AdmissionLimits | None = None,
    retention: RetentionLimits | None = None,
    log: RequestLog | None = None,
    router: RouterConfig | None = None,
    clock: Callable[[], float] | None = None,
) -> RequestPath:
    """Assembled, not yet started."""
    still, seen = Clock(), Seen()
    clock = clock or still
    routing = Router(router, metrics=seen, events=seen, clock=clock)
    intake = Intake(lambda: model, tokenizer or ModelTokenizer(byte_level()))
    front_door = FrontDoor(
        intake=intake,
        router=routing,
        admission=admission,
        retention=retention,
        log=log,
        metrics=seen,
        clock=clock,
    )
    return RequestPath(routing, intake, front_door, seen, still)


@dataclass
class Served:
    """A request path behind a gRPC server."""

    path: RequestPath
    stub: InferenceServiceAsyncStub
    #: Exceptions that became INTERNAL: there should be none.
    internal: list[BaseException]
    address: str

    def channel(self, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
        """A connection of one's own."""
        return grpc.aio.insecure_channel(self.address, options=[*CHANNEL_OPTIONS, *options])


@asynccontextmanager
async def served(path: RequestPath, *, owner_of: Callable[..., str] | None = None) -> AsyncIterator[Served]:
    """Before the clients' side of gRPC."""
    internal: list[BaseException] = []
    interceptor = StatusInterceptor(lambda _method, error: internal.append(error))
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[interceptor])
    servicer = InferenceServicer(path.front_door, path.intake, **({"owner_of": owner_of} if owner_of else {}))
    add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    keeping_time = asyncio.create_task(path.front_door.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        try:
            yield Served(path, InferenceServiceStub(channel), internal, f"127.0.0.1:{port}")
        finally:
            await server.stop(None)
            keeping_time.cancel()
            path.router.close()
            path.intake.close()


async def read_all(subscription: Subscription) -> tuple[list[int], str, Ending]:
    """Tokens, text and the end of a stream, with every index checked."""
    tokens: list[int] = []
    start = subscription.index
    text = ""
    while True:
        item = await subscription.next()
        if isinstance(item, Ending):
            return tokens, text, item
        assert isinstance(item, TokenSpan)
        assert item.first_index == start + len(tokens)
        tokens.extend(item.token_ids)
        text += item.text


async def eventually(condition: Callable[[], bool]) -> None:
    """Gives the loop its turns until the condition holds; the test's own timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.001)
