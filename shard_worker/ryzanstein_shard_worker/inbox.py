"""What the coordinator asked of the leader since the last step: written by the control thread, taken by the engine."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2


@dataclass(slots=True)
class Arrived:
    """Everything that came since the last call of `take`."""

    arrivals: list[shard_worker_pb2.SubmitSequence] = field(default_factory=list)
    departures: list[shard_worker_pb2.Departure] = field(default_factory=list)
    stop: bool = False

    def __bool__(self) -> bool:
        return bool(self.arrivals or self.departures or self.stop)


class Inbox:
    """A mailbox with one reader. Nothing is lost and the order is kept."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending = Arrived()

    def submit(self, sequence: shard_worker_pb2.SubmitSequence) -> None:
        with self._changed:
            self._pending.arrivals.append(sequence)
            self._changed.notify()

    def cancel(self, sequence_id: int) -> None:
        """The sequence leaves at the next step; one that never was in a step just vanishes."""
        departure = shard_worker_pb2.Departure(
            sequence_id=sequence_id, reason=sampling_pb2.FINISH_REASON_CANCELLED
        )
        with self._changed:
            before = len(self._pending.arrivals)
            self._pending.arrivals = [s for s in self._pending.arrivals if s.sequence_id != sequence_id]
            if len(self._pending.arrivals) == before:
                self._pending.departures.append(departure)
            self._changed.notify()

    def stop(self) -> None:
        """The group's loop ends after the next step."""
        with self._changed:
            self._pending.stop = True
            self._changed.notify()

    def take(self, wait_s: float) -> Arrived:
        """All that is there; waits up to `wait_s` if nothing is."""
        with self._changed:
            if not self._pending and wait_s > 0:
                self._changed.wait(wait_s)
            taken, self._pending = self._pending, Arrived()
            return taken
