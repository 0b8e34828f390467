"""The parent of `ryzanstein serve`: one coordinator and its local workers, each started again when it dies.

It holds no state of the cluster: any child may be killed, and the parent only starts it again with the same name.
When the parent itself is killed, the kernel ends its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from ryzanstein.program import ANNOUNCE_FD

from .child_watch import ChildWatch, why_silent

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child that ended is started again."""

    #: A child that lived longer than this starts again at once.
    healthy_after_s: float = 5.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0

    def delay_s(self, lived_s: float, failures: int) -> float:
        """Seconds to wait, after `failures` short lives in a row (this one not counted)."""
        if lived_s >= self.healthy_after_s or failures == 0:
            return 0.0
        return float(min(self.longest_delay_s, self.first_delay_s * 2 ** (failures - 1)))


@dataclass(frozen=True, slots=True)
class Child:
    """A program to keep alive."""

    name: str
    #: Called before every start: a restarted coordinator keeps the port that the first one got.
    arguments: Callable[[], list[str]]
    #: Environment in addition to the parent's.
    environment: dict[str, str]
    #: It is not started again sooner than so long after its end; asked again whenever another child ends.
    restart_after_s: Callable[[], float] = lambda: 0.0
    #: Open files that it inherits, under the same numbers.
    files: tuple[int, ...] = ()
    #: A child that says that it is ready, and then nothing for so long, is killed; None: it is not.
    watchdog_s: float | None = None
    #: Gives the line that it reads from its standard input, as soon as that is known; None: it reads nothing.
    told: Callable[[], Awaitable[str]] | None = None


#: What a child announced just before its end is still heard. Longer only if a process of its own holds the pipe open.
_LAST_WORDS_S = 0.5


class Supervisor:
    """Starts children, restarts those that die, and ends all of them."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        #: Set for a child that is not to be started again.
        self._stops: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        #: Set, and replaced, when a child ends or is not to be started again.
        self._changed = asyncio.Event()

    @property
    def running(self) -> frozenset[str]:
        """The children whose processes run."""
        return frozenset(name for name, process in self._processes.items() if process.returncode is None)

    async def keep(
        self,
        child: Child,
        *,
        is_final: Callable[[int], bool],
        on_start: Callable[[int], Awaitable[None]] | None = None,
    ) -> int:
        """Runs the child, again and again, until `stop` names it or its end is final.

        Args:
            is_final: whether an exit code means that starting it again is no use.
            on_start: runs after every start, with a file descriptor to give to `announcements`.

        Returns:
            The child's last exit code; negative for a signal.
        """
        failures = 0
        while True:
            started_at = time.monotonic()
            code = await self._run_once(child, on_start)
            lived_s = time.monotonic() - started_at
            if self._stops[child.name].is_set() or is_final(code):
                return code
            pause_s = self._policy.delay_s(lived_s, failures)
            failures = 0 if lived_s >= self._policy.healthy_after_s else failures + 1
            delay_s = max(child.restart_after_s(), pause_s)
            log.warning("child_ended", child=child.name, exit=_describe(code), starts_again_in_s=delay_s)
            await self._pause(child, pause_s)
            if self._stops[child.name].is_set():
                return code

    async def _pause(self, child: Child, least_s: float) -> None:
        """Until the child may be started again, or is not to be."""
        begun_at = time.monotonic()
        while not self._stops[child.name].is_set():
            left_s = begun_at + max(child.restart_after_s(), least_s) - time.monotonic()
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def expect_end(self, names: Iterable[str]) -> None:
        """These are about to end by themselves; none is started again."""
        for name in names:
            self._stops[name].set()
        self._change()

    async def stop(self, name: str, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL when the child has not ended within `timeout_s`."""
        self.expect_end([name])
        process = self._processes.get(name)
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            log.warning("child_killed", child=name, after_s=timeout_s)
            _signal(process, signal.SIGKILL)
            await process.wait()

    def kill_all(self) -> None:
        """SIGKILL to every child; none is started again."""
        self.expect_end(self._processes)
        for process in self._processes.values():
            if process.returncode is None:
                _signal(process, signal.SIGKILL)

    async def _run_once(self, child: Child, on_start: Callable[[int], Awaitable[None]] | None) -> int:
        with contextlib.ExitStack() as opened:  # closed even if the child can't be started
            reader, writer = os.pipe()
            opened.callback(os.close, reader)
            try:
                watch = None
                if child.watchdog_s is not None:
                    watch = opened.enter_context(ChildWatch(child.watchdog_s))
                process = await _spawn(child, writer, watch)
            finally:
                os.close(writer)  # the child has its own
            self._processes[child.name] = process
            log.info("child_started", child=child.name, pid=process.pid)
            if self._stops[child.name].is_set():  # told to stop while it was being started
                _signal(process, signal.SIGKILL)
            announced = asyncio.ensure_future(on_start(reader)) if on_start else None
            beside: list[asyncio.Task[None]] = []
            if child.told is not None:
                beside.append(asyncio.create_task(_tell(process, child.told)))
            if watch is not None:
                beside.append(asyncio.create_task(_end_hung(child.name, process, watch)))
            try:
                return await process.wait()
            finally:
                self._change()
                for task in beside:
                    task.cancel()
                if announced is not None:
                    await asyncio.wait({announced}, timeout=_LAST_WORDS_S)
                    announced.cancel()
                    await asyncio.gather(announced, return_exceptions=True)


async def _spawn(child: Child, announces: int, watch: ChildWatch | None) -> asyncio.subprocess.Process:
    """Starts it, with the end of the pipe that it announces on. Raises OSError."""
    managed = {} if watch is None else watch.environment
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *child.arguments(),
        stdin=asyncio.subprocess.DEVNULL if child.told is None else asyncio.subprocess.PIPE,
        env={**os.environ, **child.environment, **managed, ANNOUNCE_FD: str(announces)},
        pass_fds=(announces, *child.files),
        # Ctrl-C goes to the parent alone, which then drains in order.
        start_new_session=True,
        preexec_fn=functools.partial(_die_with_parent, os.getpid()),
    )


async def announcements(reader: int) -> AsyncIterator[str]:
    """The lines that a child announces, as they come, until it closes its end."""
    loop = asyncio.get_running_loop()
    pending = b""
    while True:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(reader, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(reader)
        chunk = os.read(reader, 4096)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


async def _tell(process: asyncio.subprocess.Process, told: Callable[[], Awaitable[str]]) -> None:
    line = await told()
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # it has ended, and its parent learns that otherwise
        process.stdin.write(f"{line}\n".encode())
        await process.stdin.drain()
    process.stdin.close()


async def _end_hung(name: str, process: asyncio.subprocess.Process, watch: ChildWatch) -> None:
    """Kills a child that gets on no more: what it does for its cluster another process can do."""
    await watch.hung()
    log.error(
        "child_hung",
        child=name,
        pid=process.pid,
        silent_s=watch.watchdog_s,
        reason=f"{why_silent(process.pid)}: it is killed and started again",
    )
    _signal(process, signal.SIGKILL)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before the kernel had been told
        os.kill(os.getpid(), signal.SIGKILL)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        process.send_signal(number)


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
