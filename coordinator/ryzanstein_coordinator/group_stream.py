"""The one Execute stream to a group's leader: sequences down, one message per step up."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import structlog

from ryzanstein.v1.shard_worker_pb2 import CancelSequence, ExecuteRequest, ExecuteResponse, SubmitSequence
from ryzanstein.wire import EPOCH_KEY, EXECUTE_BEAT_S

from .requests import RequestRecord

if TYPE_CHECKING:  # the name exists for type checkers only
    from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceAsyncStub

_log = structlog.get_logger()

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
#: A stream on which so many of the leader's signs of life are missing is broken, whatever TCP says: a cut network is
#: noticed by it after ten seconds or more. A leader that can't even send heartbeats is found before, by its lease.
_MISSING_BEATS = 6


class GroupStream:
    """Keeps the stream of one epoch open until it is closed.

    `on_step` gets every message. When the stream breaks, what was not sent is dropped and `on_broken` is
    told; when it is opened again, `on_open` is told and may submit anew. That is before anybody has answered: when
    the leader has taken the stream, `on_alive` is told, and once more with True when the first tokens came on it.
    """

    def __init__(
        self,
        stub: ShardWorkerServiceAsyncStub,
        epoch: int,
        *,
        on_open: Callable[[], None],
        on_alive: Callable[[bool], None],
        on_step: Callable[[ExecuteResponse], None],
        on_broken: Callable[[str], None],
    ) -> None:
        self.epoch = epoch
        self._stub = stub
        self._on_open = on_open
        self._on_alive = on_alive
        self._on_step = on_step
        self._on_broken = on_broken
        self._submissions: dict[int, RequestRecord] = {}  # not sent yet, in order
        self._cancellations: deque[int] = deque()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lived = False  # whether the stream that is open brought any step
        self._taken = False  # whether the leader has answered on it, in this epoch
        self._flows = False  # and has sent tokens
        self._heard = 0  # messages on it
        self._silent = False  # it is given up because nothing came
        self._closed = False

    def start(self) -> None:
        """Opens the stream in the background."""
        self._task = asyncio.create_task(self._run(), name=f"execute-{self.epoch}")

    def close(self) -> None:
        """Ends the stream at once; nothing is called any more."""
        self._closed = True  # gRPC may swallow the task's cancellation while it opens a call
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def submit(self, record: RequestRecord) -> None:
        """Sends the record under its sequence id, with the tokens it has at that moment."""
        self._submissions[record.sequence_id] = record
        self._work.set()

    def cancel(self, sequence_id: int) -> None:
        """Takes a sequence out, at the next step or before it was sent."""
        if self._submissions.pop(sequence_id, None) is None:
            self._cancellations.append(sequence_id)
            self._work.set()

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closed:
            self._lived = self._taken = self._flows = self._silent = False
            reason = await self._once()
            if self._closed:
                return
            self._submissions.clear()
            self._cancellations.clear()
            self._on_broken(reason)
            pause_s = _FIRST_PAUSE_S if self._lived else min(_LONGEST_PAUSE_S, 2 * pause_s)
            await asyncio.sleep(pause_s)

    async def _once(self) -> str:
        """One stream from its opening to its end. Returns why it ended."""
        writer: asyncio.Task[None] | None = None
        try:
            call = self._stub.Execute()
            writer = asyncio.create_task(self._write(call), name=f"execute-{self.epoch}-commands")
            self._on_open()
            # A call that failed has none; what is submitted does not wait for it.
            if (await call.initial_metadata()).get(EPOCH_KEY) == str(self.epoch) and not self._closed:
                self._taken = True
                self._on_alive(False)
            await self._read(call)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed or task is None or task.cancelling():
                raise
            if self._silent:
                return f"nothing came for {_MISSING_BEATS * EXECUTE_BEAT_S:g} s"
            return "the call was cancelled"  # not this task: the channel was closed, or writing failed
        except grpc.aio.UsageError as error:  # the channel was closed before
            return str(error)
        except Exception as error:  # noqa: BLE001 - a defect of ours in one message must not stop the group
            _log.exception("execute_stream_failed", epoch=self.epoch)
            return f"{type(error).__name__}: {error}"
        finally:
            if writer is not None:
                writer.cancel()
                call.cancel()
        return "the leader ended the stream"

    async def _read(self, call: Any) -> None:
        watch: asyncio.Task[None] | None = None
        try:
            while (message := await call.read()) is not grpc.aio.EOF and not self._closed:
                response = cast("ExecuteResponse", message)
                self._heard += 1
                if response.HasField("stats"):
                    self._lived = True
                    self._on_step(response)
                    if response.outputs and self._taken and not self._flows:
                        self._flows = True
                        self._on_alive(True)
                elif watch is None:  # a leader that gives signs of life goes on to
                    watch = asyncio.create_task(self._watch(call), name=f"execute-{self.epoch}-watch")
        finally:
            if watch is not None:
                watch.cancel()

    async def _watch(self, call: Any) -> None:
        """Gives the stream up when nothing comes any more.

        Counted, not timed: after this process stood still, what waits in its sockets is read before the next count.
        """
        missing = 0
        while missing < _MISSING_BEATS:
            before = self._heard
            await asyncio.sleep(EXECUTE_BEAT_S)
            missing = 0 if self._heard != before else missing + 1
        self._silent = True
        call.cancel()

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while self._cancellations or self._submissions:
                    await call.write(self._next_command())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over: its reader says why
        except Exception:  # noqa: BLE001 - told to the reader by ending the call
            _log.exception("execute_commands_failed", epoch=self.epoch)
            call.cancel()

    def _next_command(self) -> ExecuteRequest:
        if self._cancellations:
            cancellation = CancelSequence(sequence_id=self._cancellations.popleft())
            return ExecuteRequest(epoch=self.epoch, cancel=cancellation)
        sequence_id = next(iter(self._submissions))
        return ExecuteRequest(epoch=self.epoch, submit=submission(self._submissions.pop(sequence_id)))


def submission(record: RequestRecord) -> SubmitSequence:
    """The record as its leader gets it."""
    return SubmitSequence(
        sequence_id=record.sequence_id,
        request_id=record.spec.request_id,
        prompt_token_ids=record.spec.prompt,
        emitted_token_ids=record.output.token_ids,
        sampling=record.spec.sampling,
        priority=record.spec.priority,
        eos_token_ids=record.spec.eos_token_ids,
        cache_salt=cache_salt(record.spec.owner),
    )


@functools.lru_cache(maxsize=4096)
def cache_salt(owner: str) -> bytes:
    """What keeps one owner's cached prompts apart from another's: how fast a prompt is answered must not tell whether
    somebody else sent it. Of the owner's name, which does not leave the coordinator."""
    return hashlib.blake2b(owner.encode(), digest_size=16, person=b"ryzanstein salt").digest()
