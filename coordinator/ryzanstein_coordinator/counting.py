"""Every request once in the metrics, by how it ended for good. Pure, but for what the metrics make of it."""

from __future__ import annotations

from .deadlines import DeadlineQueue
from .observers import RequestMetrics
from .requests import RequestRecord

#: Whoever lost a connection comes back sooner: only then has a request ended whose caller could go on with it.
COUNTED_AFTER_S = 10.0


class EndCounter:
    """Told of every end and every revival. A request that is revived after it was counted is not counted again."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics
        self._undecided: DeadlineQueue[RequestRecord] = DeadlineQueue()

    def ended(self, record: RequestRecord, now: float) -> None:
        """At once if that is the end of it, else when nobody has come back for a while."""
        assert record.ending is not None
        if record.ending.revivable:
            self._undecided.add(record, now + COUNTED_AFTER_S)
        else:
            self._count(record, now)

    def revived(self, record: RequestRecord) -> None:
        """That was not the end of it."""
        self._undecided.discard(record)

    def tick(self, now: float) -> None:
        """Counts those whose callers stayed away."""
        for record in self._undecided.expired(now):
            self._count(record, now)

    def next_at(self) -> float | None:
        """When `tick` may have something to do."""
        return self._undecided.next_at()

    def _count(self, record: RequestRecord, now: float) -> None:
        if record.counted or record.ending is None:
            return
        record.counted = True
        self._metrics.request_ended(record.ending.outcome, record.timings.total_s(now))
