"""Ranks as real processes that do what a test tells them, form groups, and can be killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import pytest
import torch

from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.communication import CommunicationError, CommunicationHandler, StepChannel
from ryzanstein_shard_worker.native.shared_memory import shared_memory_available
from ryzanstein_shard_worker.process_groups import Group, ProcessGroupManager

from .rendezvous_server import RendezvousServer

#: Forks ranks from a process that has imported torch already: 20 ms each instead of 2 s.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])

Backend: TypeAlias = shard_worker_pb2.Backend.ValueType
SHARED_MEMORY = shard_worker_pb2.BACKEND_SHARED_MEMORY
GLOO = shard_worker_pb2.BACKEND_GLOO

needs_native_library = pytest.mark.skipif(
    not shared_memory_available(), reason="no C compiler built the native library here"
)
CPU_BACKENDS = [
    pytest.param(SHARED_MEMORY, id="shared_memory", marks=needs_native_library),
    pytest.param(GLOO, id="gloo"),
]


class Rank:
    """What a test's function gets, inside of the process of one rank."""

    def __init__(self, coordinator: str) -> None:
        self.manager = ProcessGroupManager(coordinator, host="127.0.0.1")
        self.manager.prepare()

    def join(self, request: bytes) -> Group:
        """Joins as the engine does."""
        return self.manager.join(shard_worker_pb2.JoinGroupRequest.FromString(request), torch.device("cpu"))

    @property
    def group(self) -> Group:
        group = self.manager.group
        assert group is not None, "join first"
        return group

    @property
    def handler(self) -> CommunicationHandler:
        return self.group.handler

    @property
    def channel(self) -> StepChannel:
        return self.group.step_channel


class Ranks:
    """`count` processes. `call` runs a function of this module's importers in some or all of them, at once."""

    def __init__(self, count: int) -> None:
        self._server = RendezvousServer()
        self._count = count
        self._epoch = 0
        self.processes: list[Any] = []
        self._pipes: list[multiprocessing.connection.Connection] = []

    def __enter__(self) -> Self:
        self._server.__enter__()
        for _ in range(self._count):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)
        for pipe in self._pipes:
            pipe.close()  # the rank's loop ends
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)
        self._server.__exit__()
        assert not self._server.defects

    def add(self) -> int:
        """One more process; returns its index."""
        mine, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_main, args=(theirs, self._server.address), daemon=True)
        process.start()
        theirs.close()
        self.processes.append(process)
        self._pipes.append(mine)
        return len(self.processes) - 1

    def start(self, function: Callable[..., Any], *arguments: Any, on: Sequence[int] | None = None) -> None:
        """Lets processes call function(rank, *arguments) without waiting for them."""
        for index in range(len(self.processes)) if on is None else on:
            self._pipes[index].send((function, arguments))

    def results(self, *, on: Sequence[int] | None = None, timeout_s: float = 30.0) -> list[Any]:
        """What the functions started last returned, in order; an exception is returned, not raised."""
        deadline = time.monotonic() + timeout_s
        results = []
        for index in range(len(self.processes)) if on is None else on:
            pipe = self._pipes[index]
            if not pipe.poll(max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError(f"process {index} did not answer within {timeout_s} s")
            results.append(pipe.recv())
        return results

    def call(
        self, function: Callable[..., Any], *arguments: Any, on: Sequence[int] | None = None
    ) -> list[Any]:
        """Runs function(rank, *arguments) in processes; the first exception is raised here."""
        self.start(function, *arguments, on=on)
        results = self.results(on=on)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def requests(
        self,
        members: Sequence[int],
        *,
        backend: Backend,
        timeout_s: float = 5.0,
        join_timeout_s: float = 10.0,
        host_ids: Sequence[str] | None = None,
        devices: Sequence[str] | None = None,
    ) -> list[bytes]:
        """The next epoch's JoinGroup for each member, ranks in the order given; its attempt is open."""
        self._epoch += 1
        nonce = secrets.token_hex(8)
        self._server.open("group-0", self._epoch, nonce)
        requests = []
        for rank in range(len(members)):
            request = shard_worker_pb2.JoinGroupRequest(
                epoch=self._epoch,
                group_id="group-0",
                nonce=nonce,
                rank=rank,
                backend=backend,
                collective_timeout_s=timeout_s,
                join_timeout_s=join_timeout_s,
            )
            for member in range(len(members)):
                request.members.add(
                    rank=member,
                    host="127.0.0.1",
                    host_id="one host" if host_ids is None else host_ids[member],
                    device="cpu" if devices is None else devices[member],
                )
            requests.append(request.SerializeToString())
        return requests

    def form(
        self,
        backend: Backend,
        members: Sequence[int] | None = None,
        **options: Any,
    ) -> list[str]:
        """Forms the next epoch of these processes; returns the backend that each ended with."""
        chosen = list(range(len(self.processes))) if members is None else list(members)
        for index, request in zip(chosen, self.requests(chosen, backend=backend, **options), strict=True):
            self.start(_join, request, on=[index])
        results = self.results(on=chosen)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def close_attempt(self) -> None:
        """The coordinator gives up the attempt that is open."""
        self._server.close_attempt("group-0")

    def kill(self, index: int, number: int = signal.SIGKILL) -> float:
        """Sends a signal; returns the time of it."""
        os.kill(self.processes[index].pid, number)
        return time.monotonic()


def failure(result: Any) -> CommunicationError:
    """The error that a process ended its call with."""
    assert isinstance(result, CommunicationError), result
    return result


def _join(rank: Rank, request: bytes) -> str:
    return rank.join(request).handler.backend


def _main(pipe: multiprocessing.connection.Connection, coordinator: str) -> None:
    torch.set_num_threads(1)
    rank = Rank(coordinator)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            result = function(rank, *arguments)
        except Exception as error:  # noqa: BLE001 - handed to the test
            result = error
        pipe.send(result)
    rank.manager.close()
