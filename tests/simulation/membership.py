"""A worker's side of the control plane: it registers, beats when something changes, and comes back when it was cut off.

(The heartbeats that say nothing new are left out; see `ticks`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import cluster_pb2
from ryzanstein_coordinator.worker_record import Telemetry

from .network import Connection

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .worker import Worker
    from .world import World

GIB = 1024**3


class Membership:
    """As `membership.Membership` of the shard worker."""

    def __init__(self, world: World, worker: Worker) -> None:
        self._world, self._worker = world, worker
        #: The highest epoch that a heartbeat was answered with.
        self.highest_epoch = 0
        self._home: Connection | None = None
        self.registered = False
        #: Heartbeats that are under way.
        self.beats_under_way = 0
        self.request = cluster_pb2.RegisterRequest(
            worker_id=worker.worker_id,
            incarnation=worker.incarnation,
            host="host",
            host_id="host",
            pid=1000 + worker.number,
            address=f"127.0.0.1:{10000 + worker.number}",
            device=cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=64 * GIB, free_bytes=64 * GIB),
            versions=cluster_pb2.Versions(wire=WIRE_VERSION, numerics=NUMERICS_VERSION),
            cpu_threads=1,
        )

    def begin(self) -> None:
        """The process has started."""
        self._world.timeline.after(
            0.002 + 0.03 * self._world.random(), lambda: self._worker.take(self._register)
        )

    def _register(self) -> None:
        coordinator = self._world.coordinator
        if not self._worker.alive:
            return
        if coordinator is None or not coordinator.alive or self._worker.cut or coordinator.cut:
            self._again()
            return
        self.registered, self.beats_under_way = False, 0
        self._home = connection = self._world.connect(
            self._worker, coordinator, on_end_near=lambda: self._lost_home(connection)
        )
        self.request.highest_epoch = self.seen_epoch()
        connection.to_far(lambda: coordinator.register(self._worker, connection))

    def seen_epoch(self) -> int:
        """What it says at Register: an epoch that a call named counts, although no heartbeat was answered since."""
        return max(self.highest_epoch, self._worker.named_epoch)

    def accepted(self, epoch: int) -> None:
        """Register was answered: the first heartbeat follows."""
        if self._worker.alive:
            self.registered = True
            self.tell()

    def refused(self, reason: str) -> None:
        """The coordinator will never take it: the process ends."""
        self._world.note("%s is refused: %s", self._worker.name, reason)
        self._world.end_worker(self._worker)

    def beat_answered(self, epoch: int) -> None:
        self.highest_epoch = max(self.highest_epoch, epoch)

    def _lost_home(self, connection: Connection) -> None:
        if self._home is connection:
            self._home, self.registered = None, False
            self._again()

    def _again(self) -> None:
        self._home = None
        self._world.timeline.after(
            0.05 + 0.2 * self._world.random(), lambda: self._worker.take(self._try_again)
        )

    def _try_again(self) -> None:
        if self._home is None:
            self._register()

    def tell(self) -> None:
        """A heartbeat now: something has changed."""
        connection, coordinator = self._home, self._world.coordinator
        if (
            not self.registered
            or connection is None
            or connection.over
            or coordinator is None
            or not self._worker.runs
        ):
            return
        self.beats_under_way += 1
        report = self._worker.report()
        connection.to_far(lambda: self._told(coordinator, connection, report))

    def _told(self, coordinator: Coordinator, connection: Connection, report: Telemetry) -> None:
        if connection is self._home:
            self.beats_under_way -= 1
        coordinator.heartbeat(self._worker, connection, report)
