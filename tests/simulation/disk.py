"""The coordinator's disk: what was written survives it, what was not does not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from ryzanstein_coordinator.group_record import Member
from ryzanstein_coordinator.request_log import EXPIRED_KEPT_S
from ryzanstein_coordinator.requests import RequestKey, RequestSpec

from .timeline import SimulatedLoop, Timeline


class Disk:
    """Survives every coordinator."""

    def __init__(self, timeline: Timeline, rng: random.Random) -> None:
        self.timeline = timeline
        self._random = rng.random
        self.works = True
        #: Seconds that a write takes besides.
        self.slow_s = 0.0
        self.highest_epoch = 0
        self.members: dict[str, tuple[str, ...]] = {}
        #: Request → what was asked, and the moment of its deadline.
        self.requests: dict[RequestKey, tuple[RequestSpec, float | None]] = {}
        #: Requests that were accepted while nothing could be written: a restart loses them.
        self.unwritten: set[RequestKey] = set()

    def delay_s(self) -> float:
        return 0.0005 + 0.004 * self._random() + self.slow_s


class Writer:
    """One coordinator's way to the disk: writes one after the other, none after its death."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._free_at_s = 0.0
        self.alive = True

    def write(self, apply: Callable[[], None], done: Callable[[bool], None]) -> None:
        """`apply` when it is written, then `done(True)`; `done(False)` if it can't be."""
        timeline = self._disk.timeline
        begun_s = max(self._free_at_s, timeline.now_s)
        written_s = begun_s + self._disk.delay_s()
        self._free_at_s = written_s + 0.0002

        def written() -> None:
            if not self.alive:
                return
            works = self._disk.works
            if works:
                apply()
            timeline.at(self._free_at_s, lambda: done(works) if self.alive else None)

        timeline.at(written_s, written)

    def commit(self, epoch: int, done: Callable[[int | None], None]) -> None:
        """Tells the highest epoch that is durable; None: it could not be stored."""
        disk = self._disk

        def apply() -> None:
            disk.highest_epoch = max(disk.highest_epoch, epoch)

        self.write(apply, lambda works: done(disk.highest_epoch if works else None))

    def remember(self, group_id: str, members: tuple[Member, ...]) -> None:
        ids = tuple(member.worker_id for member in members)
        self.write(lambda: self._disk.members.__setitem__(group_id, ids), lambda _works: None)


class RequestRows:
    """The request log on the simulated disk: `request_log.RequestLog`, with its promise and no more."""

    def __init__(self, disk: Disk, writer: Writer, loop: SimulatedLoop) -> None:
        self._disk = disk
        self._writer = writer
        self._loop = loop

    async def admitted(self, spec: RequestSpec, timeout_s: float | None) -> None:
        disk, now_s = self._disk, self._disk.timeline.now_s
        row = spec, None if timeout_s is None else now_s + timeout_s
        written: asyncio.Future[None] = self._loop.create_future()

        def done(works: bool) -> None:
            if not works:
                disk.unwritten.add(spec.key)
            if not written.done():
                written.set_result(None)
            self._loop.run_ready()

        def apply() -> None:
            disk.requests[spec.key] = row
            disk.unwritten.discard(spec.key)

        self._writer.write(apply, done)
        await written

    def forgotten(self, keys: Sequence[RequestKey]) -> None:
        def apply() -> None:
            for key in keys:
                self._disk.requests.pop(key, None)

        if self._writer.alive:
            self._writer.write(apply, lambda _works: None)

    def restore(self) -> list[tuple[RequestSpec, float | None]]:
        """As the coordinator finds them when it starts."""
        now_s = self._disk.timeline.now_s
        return [
            (spec, None if deadline_s is None else deadline_s - now_s)
            for spec, deadline_s in self._disk.requests.values()
            if deadline_s is None or deadline_s > now_s - EXPIRED_KEPT_S
        ]
