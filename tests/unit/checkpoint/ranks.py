"""Real ranks: processes that stay for a test session and form a gloo group for every call."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.communication.gloo import GlooHandler
from ryzanstein_shard_worker.communication.gloo_group import form_gloo_group

#: Forks ranks from a process that has imported torch and started no thread: 20 ms each instead of 2 s.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])

#: A function of a test module that every rank calls with its handler and its own arguments.
RankFunction = Callable[..., object]


class Ranks:
    """`world` processes. Functions and arguments are pickled, so functions stand at the top of their module."""

    def __init__(self, world: int, directory: Path) -> None:
        self._directory = directory
        self._calls = 0
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(world):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(theirs, rank, world), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, function: RankFunction, *arguments: object, timeout_s: float = 20.0) -> list[Any]:
        """What the function returns on every rank, or the exception that it raises there."""
        self._calls += 1
        store = str(self._directory / f"store-{self._calls}")
        for pipe in self._pipes:
            pipe.send((function, store, timeout_s, arguments))
        return [
            pipe.recv() if pipe.poll(60) else TimeoutError("the rank does not answer") for pipe in self._pipes
        ]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            process.kill()


def _serve(pipe: Connection, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, store, timeout_s, arguments = pipe.recv()
        except EOFError:
            return
        try:
            handler = _join(store, rank, world, timeout_s)
            try:
                result = function(handler, *arguments)
            finally:
                handler.close()
        except Exception as error:  # noqa: BLE001 - handed to the test
            result = error
        pipe.send(result)


def _join(store: str, rank: int, world: int, timeout_s: float) -> CommunicationHandler:
    group = form_gloo_group(
        torch.distributed.FileStore(store, world),  # type: ignore[attr-defined]
        prefix="weights",
        rank=rank,
        world_size=world,
        host="127.0.0.1",
        timeout_s=timeout_s,
    )
    return GlooHandler(group, timeout_s=timeout_s)
