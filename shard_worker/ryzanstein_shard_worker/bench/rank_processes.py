"""Processes of this machine that each play one rank and do together what they are told: for measuring."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ryzanstein.logs import configure_logging
from ryzanstein.program import ProgramError

#: A function of a module's top level: called with the place of each rank, and arguments that can be pickled.
Work = Callable[..., Any]

_END_S = 5.0


@dataclass(slots=True)
class Place:
    """What a rank's process is told of itself. `kept` holds what a function leaves for the next one."""

    rank: int
    world_size: int
    #: A directory that all ranks see, and nobody else.
    directory: Path
    threads: int
    #: The only processor that it may use; None: any.
    core: int | None = None
    kept: dict[str, Any] = field(default_factory=dict)


class RankProcesses:
    """`count` processes, each with `threads` threads for computing. They end with the `with` block, or with their
    parent.

    `pinned`: each on a processor of its own, if there are enough (`pins` says so). The system may else put two that
    wait for each other on one processor, where each takes the other's turn.
    """

    def __init__(self, count: int, *, threads: int = 1, pinned: bool = False) -> None:
        self.count = count
        self._threads = threads
        cores = sorted(os.sched_getaffinity(0))
        self._cores: list[int] | None = cores[:count] if pinned and len(cores) >= count else None
        # Forked from a process that has imported torch already: milliseconds each.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._processes: list[BaseProcess] = []
        self._pipes: list[multiprocessing.connection.Connection] = []

    @property
    def pins(self) -> bool:
        """Each has a processor of its own."""
        return self._cores is not None

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="ryzanstein-ranks-")
        try:
            for rank in range(self.count):
                mine, theirs = self._context.Pipe()
                core = None if self._cores is None else self._cores[rank]
                place = Place(rank, self.count, Path(self._directory.name), self._threads, core)
                process = self._context.Process(target=_main, args=(theirs, place), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(mine)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Interrupted or failed, they may be in the middle of something that nobody waits for any more.
        self._end(at_once=kind is not None)

    def call(self, work: Work, *arguments: object, timeout_s: float = 600.0) -> list[Any]:
        """Runs work(place, *arguments) in all processes at once; → what they returned, by rank.

        Raises:
            ProgramError: a rank failed, ended, or did not answer in time; names it.
        """
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((work, arguments))
            except OSError:
                raise self._ended(rank) from None
        deadline_s = time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        failures: list[ProgramError] = []
        while len(results) < self.count:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = multiprocessing.connection.wait(waiting, max(0.0, deadline_s - time.monotonic()))
            if not ready:
                rank = next(rank for rank in range(self.count) if rank not in results)
                raise ProgramError(f"rank {rank} did not answer within {timeout_s:g} s")
            for rank, pipe in enumerate(self._pipes):
                if pipe in ready:
                    try:
                        failed, results[rank] = pipe.recv()
                    except (EOFError, OSError):
                        raise self._ended(rank) from None
                    if failed:
                        failures.append(ProgramError(f"rank {rank} failed: {results[rank]}"))
        if failures:  # after the answers of the others, which the next call would find
            raise failures[0]
        return [results[rank] for rank in range(self.count)]

    def _ended(self, rank: int) -> ProgramError:
        self._processes[rank].join(_END_S)
        return ProgramError(f"the process of rank {rank} ended with code {self._processes[rank].exitcode}")

    def _end(self, *, at_once: bool = False) -> None:
        for pipe in self._pipes:
            pipe.close()  # the loop of its rank ends
        for process in self._processes:
            process.join(0.0 if at_once else _END_S)
            if process.is_alive():
                process.kill()
                process.join(_END_S)
        self._directory.cleanup()


def _main(pipe: multiprocessing.connection.Connection, place: Place) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    configure_logging("auto", "warning", service="bench")
    torch.set_num_threads(place.threads)
    if place.core is not None:
        os.sched_setaffinity(0, {place.core})
    while True:
        try:
            work, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (False, work(place, *arguments))
        except Exception as error:  # noqa: BLE001 - told by the parent
            answer = (True, f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return
