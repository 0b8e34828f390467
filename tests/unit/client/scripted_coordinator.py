"""A coordinator without a cluster: the real gRPC services over a generator whose tokens can be computed by hand.

Tokens are code points, so text and tokens are easy to compare: token i of a request with seed s is
`expected_tokens(s, n)[i]`. Requests live in `records`, which survive `restart()` as the request log does. Faults are
scripted: `cut_after` and `restart_after` break real connections when the stream has sent so many tokens.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio

from ryzanstein.v1 import inference_pb2 as pb
from ryzanstein.v1 import inference_pb2_grpc, operations_pb2, operations_pb2_grpc, sampling_pb2
from ryzanstein.wire import SERVER_OPTIONS, StatusError, StatusInterceptor, invalid_argument, not_found

Result = TypeVar("Result")
ALPHABET = "abcdefghij"


def expected_tokens(seed: int, count: int) -> list[int]:
    digest = hashlib.shake_128(str(seed).encode()).digest(count)
    return [ord(ALPHABET[byte % len(ALPHABET)]) for byte in digest]


def text_of(token_ids: list[int] | tuple[int, ...]) -> str:
    return "".join(map(chr, token_ids))


@dataclass
class Record:
    """A request as the coordinator's log knows it."""

    request: pb.GenerateRequest
    seed: int
    tokens: list[int] = field(default_factory=list)
    finished: sampling_pb2.FinishReason.ValueType | None = None
    stop: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def emitted_text(self, tokens: int, *, at_end: bool) -> str:
        """The text that is delivered with the first `tokens` tokens: a function of them, held back for stop texts."""
        text = text_of(self.tokens[:tokens])
        if self.stop and at_end:
            return text[: text.index(self.stop)]
        if at_end:
            return text
        held = max(
            (n for stop in self.request.sampling.stop for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        return text[: len(text) - held]


class ScriptedCoordinator(
    inference_pb2_grpc.InferenceServiceServicer, operations_pb2_grpc.OperationsServiceServicer
):
    """Must be made, started and closed within one event loop."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.cancelled: list[str] = []
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.snapshot = operations_pb2.ClusterSnapshot(state="serving", epoch=3, revision=1)
        #: Called with the number of tokens that a stream has just sent.
        self.on_sent: Callable[[int], Awaitable[None]] | None = None
        #: Called before every call; may raise a StatusError.
        self.before_call: Callable[[str], Awaitable[None]] | None = None
        #: The generator makes no token beyond this number until it is raised.
        self.token_limit = 1_000_000
        self.port = 0
        self.credentials: grpc.ServerCredentials | None = None
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # What tests do.

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns as soon as the condition holds; it is looked at after every change on the server."""
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 10)

    async def release(self, token_limit: int) -> None:
        """Lets the generator go on up to so many tokens."""
        self.token_limit = token_limit
        self._notify()

    async def start(self) -> None:
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(lambda method, error: None)], options=SERVER_OPTIONS
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def restart(self, *, lose_last_tokens: int = 0) -> None:
        """The process dies and comes back on the same port; the log may have lost the last tokens."""
        await self.stop()
        for record in self.records.values():
            if lose_last_tokens and record.finished is None:
                del record.tokens[-lose_last_tokens:]
        await self.start()
        self._notify()

    def restart_after(self, *counts: int, lose_last_tokens: int = 0) -> None:
        """Dies each time that a stream has sent so many tokens."""
        due = sorted(counts)

        async def on_sent(count: int) -> None:
            if due and count >= due[0]:
                due.pop(0)
                # The stream's own handler is among what stops, so somebody else must do it.
                task = asyncio.ensure_future(self.restart(lose_last_tokens=lose_last_tokens))
                self._keep(task)
                await asyncio.sleep(3600)

        self.on_sent = on_sent

    async def close(self) -> None:
        await self.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # InferenceService.

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        await self._before("Generate", context)
        known = self.records.get(request.request_id)
        if known is not None and known.finished is None:
            raise StatusError(grpc.StatusCode.ALREADY_EXISTS, f"request {request.request_id!r} is alive")
        if request.model and request.model != "letters":
            raise not_found(f"model {request.model!r} is not served; there is: letters")
        if request.sampling.temperature > 2:
            raise invalid_argument(f"temperature is {request.sampling.temperature:g}; it must be in [0, 2]")
        seed = request.sampling.seed if request.sampling.HasField("seed") else 4711
        record = self.records[request.request_id] = Record(request, seed)
        self._keep(asyncio.ensure_future(self._generate(record)))
        async for event in self._events(record, []):
            yield pb.GenerateResponse(event=event)

    async def Attach(self, request: pb.AttachRequest, context: Any) -> AsyncIterator[pb.AttachResponse]:
        await self._before("Attach", context)
        record = self.records.get(request.request_id)
        if record is None:
            raise not_found(f"request {request.request_id!r} is not known")
        received = list(request.received_token_ids)
        if len(received) > len(record.tokens):
            record.tokens[:] = received
            self._notify()
        async for event in self._events(record, received):
            yield pb.AttachResponse(event=event)

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        await self._before("Cancel", context)
        self.cancelled.append(request.request_id)
        record = self.records.get(request.request_id)
        self._notify()
        if record is None:
            raise not_found(f"request {request.request_id!r} is not known")
        alive = record.finished is None
        if alive:
            self._finish(record, sampling_pb2.FINISH_REASON_CANCELLED)
        return pb.CancelResponse(cancelled=alive, epoch=3)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        await self._before("ListModels", context)
        model = pb.Model(
            name="letters", architecture="Alphabet", dtype="float32", max_model_len=4096, parameters=10
        )
        return pb.ListModelsResponse(models=[model])

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        await self._before("Tokenize", context)
        return pb.TokenizeResponse(token_ids=map(ord, _prompt_text(request)), max_model_len=4096)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        await self._before("Detokenize", context)
        return pb.DetokenizeResponse(text=text_of(tuple(request.token_ids)))

    # OperationsService.

    async def GetCluster(self, request: Any, context: Any) -> operations_pb2.GetClusterResponse:
        await self._before("GetCluster", context)
        return operations_pb2.GetClusterResponse(epoch=3, cluster=self.snapshot)

    async def WatchCluster(
        self, request: Any, context: Any
    ) -> AsyncIterator[operations_pb2.WatchClusterResponse]:
        await self._before("WatchCluster", context)
        sent = None
        while True:
            if sent != self.snapshot.revision:
                sent = self.snapshot.revision
                yield operations_pb2.WatchClusterResponse(epoch=3, cluster=self.snapshot)
                continue  # it may have changed while it was sent
            self._changed.clear()
            await self._changed.wait()

    async def DrainWorker(self, request: Any, context: Any) -> operations_pb2.DrainWorkerResponse:
        await self._before("DrainWorker", context)
        if request.worker_id not in {worker.id for worker in self.snapshot.workers}:
            raise not_found(f"worker {request.worker_id!r} is not known")
        return operations_pb2.DrainWorkerResponse(epoch=3)

    async def PlanMemory(self, request: Any, context: Any) -> operations_pb2.PlanMemoryResponse:
        raise invalid_argument("this coordinator has no memory to plan")

    # How it works.

    async def _before(self, call: str, context: Any) -> None:
        self.calls.append(call)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self._notify()
        if self.before_call is not None:
            await self.before_call(call)

    async def _generate(self, record: Record) -> None:
        """What the cluster does: makes tokens whether or not anybody listens."""
        sampling = record.request.sampling
        wanted = sampling.max_tokens or 16
        tokens = expected_tokens(record.seed, wanted)
        while record.finished is None:
            done = len(record.tokens)
            if done == wanted:
                self._finish(record, sampling_pb2.FINISH_REASON_LENGTH)
                break
            if done >= self.token_limit:
                await self._wait(record)
                continue
            record.tokens.append(tokens[done])
            record.stop = next((stop for stop in sampling.stop if stop in text_of(record.tokens)), "")
            if record.stop:
                self._finish(record, sampling_pb2.FINISH_REASON_STOP)
            record.changed.set()
            await asyncio.sleep(0)

    async def _events(self, record: Record, received: list[int]) -> AsyncIterator[pb.StreamEvent]:
        request = record.request
        yield pb.StreamEvent(
            accepted=pb.RequestAccepted(
                request_id=request.request_id, seed=record.seed, prompt_tokens=3, model="letters", epoch=3
            )
        )
        sent = len(received)
        over = record.finished is not None and sent == len(record.tokens) and bool(record.stop)
        shown = len(record.emitted_text(sent, at_end=over)) if sent else 0
        while True:
            while sent < len(record.tokens):
                last = record.finished is not None and sent + 1 == len(record.tokens) and bool(record.stop)
                text = record.emitted_text(sent + 1, at_end=last)
                token = record.tokens[sent]
                chunk = pb.TokenChunk(first_index=sent, token_ids=[token], text=text[shown:])
                if request.sampling.HasField("logprobs"):
                    top = [sampling_pb2.TopLogprob(token_id=token, logprob=-0.5)] * request.sampling.logprobs
                    chunk.logprobs.add(token_id=token, logprob=-0.5, top=top)
                yield pb.StreamEvent(tokens=chunk)
                sent, shown = sent + 1, max(shown, len(text))
                if self.on_sent is not None:
                    await self.on_sent(sent)
            if record.finished is not None:
                break
            await self._wait(record)
        rest = record.emitted_text(len(record.tokens), at_end=True)[shown:]
        if rest:
            yield pb.StreamEvent(tokens=pb.TokenChunk(first_index=sent, text=rest))
            if self.on_sent is not None:
                await self.on_sent(sent)
        if record.finished == sampling_pb2.FINISH_REASON_CANCELLED:
            raise StatusError(grpc.StatusCode.CANCELLED, f"request {request.request_id!r} was cancelled")
        usage = pb.Usage(prompt_tokens=3, completion_tokens=len(record.tokens), cached_tokens=1)
        timings = pb.RequestTimings(queue_s=0.25, first_token_s=0.5, total_s=1.5)
        yield pb.StreamEvent(
            finished=pb.RequestFinished(
                reason=record.finished, usage=usage, timings=timings, stop=record.stop
            )
        )

    def _finish(self, record: Record, reason: sampling_pb2.FinishReason.ValueType) -> None:
        record.finished = reason
        record.changed.set()
        self._notify()

    async def _wait(self, record: Record) -> None:
        record.changed.clear()
        await record.changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        for record in self.records.values():
            record.changed.set()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _prompt_text(request: pb.TokenizeRequest) -> str:
    if request.WhichOneof("prompt") == "text":
        return request.text
    return "".join(f"{message.role}: {message.content}\n" for message in request.chat.messages)


class CoordinatorThread:
    """The same in a thread with an event loop of its own, for tests that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.coordinator = ScriptedCoordinator()
        self.do(self.coordinator.start())

    @property
    def address(self) -> str:
        return self.coordinator.address

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine in the server's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        self.do(self.coordinator.wait_until(condition))

    def close(self) -> None:
        self.do(self.coordinator.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
