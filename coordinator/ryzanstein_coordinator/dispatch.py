"""Which request goes to which group next. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .requests import RequestRecord
from .suspicion import next_held


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """A group that serves: what it has and what it takes."""

    group_id: str
    #: Submitted and not ended.
    sequences: int
    max_num_seqs: int
    #: It takes nothing now, whatever room it has.
    closed: bool = False

    @property
    def window(self) -> int:
        """Sequences that are submitted at most: a few more than run, so that a place that gets free is
        taken in the very next step. The rest waits here, where priorities, cancellations and faults cost
        nothing."""
        return self.max_num_seqs + max(2, self.max_num_seqs // 4)


def choose_group(groups: Iterable[GroupLoad]) -> str | None:
    """The group with the smallest share of its places taken; None if all have as much as they take."""
    open_groups = [group for group in groups if group.sequences < group.window and not group.closed]
    if not open_groups:
        return None
    return min(open_groups, key=lambda group: (group.sequences / group.max_num_seqs, group.group_id)).group_id


def replay_order(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """After a fault: streams that had begun, the one with the fewest tokens to prefill first, because it is
    back soonest; then those that had none, as they would have waited."""
    return sorted(records, key=_replay_key)


def _replay_key(record: RequestRecord) -> tuple[int, int, int]:
    if len(record.output):
        return 0, record.replay_tokens, record.arrival
    return 1, -record.spec.priority, record.arrival


class WaitingQueue:
    """Requests that no group has: streams that had begun first, then by priority, then by arrival. Those that may
    have broken their group are held apart."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, RequestRecord]] = []
        self._number = 0
        self._entries: dict[int, int] = {}  # arrival → number of its entry that counts
        self._held: dict[int, RequestRecord] = {}

    def __len__(self) -> int:
        return len(self._entries) + len(self._held)

    def push(self, record: RequestRecord) -> None:
        """Its place must be WAITING. If it is here already, it gets the place that it deserves now."""
        if record.suspicion.is_held:
            self.discard(record)
            self._held[record.arrival] = record
            return
        self._number += 1
        self._entries[record.arrival] = self._number
        heapq.heappush(self._heap, (_replay_key(record), self._number, record))

    def pop(self) -> RequestRecord | None:
        """The next one that is not held apart; None if there is none."""
        while self._heap:
            _, number, record = heapq.heappop(self._heap)
            if self._entries.get(record.arrival) == number:
                del self._entries[record.arrival]
                return record
        return None

    @property
    def must_isolate(self) -> bool:
        """Somebody here may only be computed with nothing beside it."""
        return any(record.suspicion.needs_isolation for record in self._held.values())

    def pop_held(
        self, running: Collection[RequestRecord], *, may_isolate: bool = True
    ) -> RequestRecord | None:
        """One of those held apart that may be computed in a group that runs these, or in their place if it must be
        alone; see `suspicion`."""
        if not self._held:
            return None
        record = next_held(self._held.values(), running, may_isolate=may_isolate)
        return None if record is None else self._held.pop(record.arrival)

    def discard(self, record: RequestRecord) -> None:
        """It ended while it waited."""
        self._held.pop(record.arrival, None)
        self._entries.pop(record.arrival, None)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._entries):
            self._heap = [entry for entry in self._heap if self._entries.get(entry[2].arrival) == entry[1]]
            heapq.heapify(self._heap)

    def records(self) -> Sequence[RequestRecord]:
        """All that wait, in no order."""
        queued = [record for _, number, record in self._heap if self._entries.get(record.arrival) == number]
        return [*queued, *self._held.values()]
