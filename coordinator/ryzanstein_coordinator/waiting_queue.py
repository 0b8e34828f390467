"""The requests that no group has, and which of them is next. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Sequence

from .fair_shares import FairShares
from .requests import RequestRecord
from .suspicion import next_held

#: Priority and owner: within a lane requests go as they came.
_Key = tuple[int, str]


class WaitingQueue:
    """Streams that had begun first, the shortest before others; then by priority; then the owner who was served
    least; then by arrival. Those that may have broken their group are held apart."""

    def __init__(self) -> None:
        self._begun = _Lane(None)
        self._lanes: dict[_Key, _Lane] = {}
        #: Arrival → where the request is.
        self._places: dict[int, _Lane] = {}
        self._held: dict[int, RequestRecord] = {}
        self._shares = FairShares()

    def __len__(self) -> int:
        return len(self._places) + len(self._held)

    def push(self, record: RequestRecord) -> None:
        """Its place must be WAITING. If it is here already, it gets the place that it deserves now."""
        self.discard(record)
        if record.suspicion.is_held:
            self._held[record.arrival] = record
            return
        if len(record.output):
            lane, order = self._begun, record.replay_tokens
        else:
            key = record.spec.priority, record.spec.owner
            lane, order = self._lanes.setdefault(key, _Lane(key)), 0
            self._shares.waits(record.spec.owner)
        lane.push(order, record)
        self._places[record.arrival] = lane

    def pop(self) -> RequestRecord | None:
        """The next one that is not held apart; None if there is none."""
        record = self._begun.first()
        if record is None and self._lanes:
            highest = max(priority for priority, _ in self._lanes)
            heads = [lane.first() for (priority, _), lane in self._lanes.items() if priority == highest]
            record = min((head for head in heads if head is not None), key=self._turn)
        if record is not None:
            self.discard(record)
        return record

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
        lane = self._places.pop(record.arrival, None)
        if lane is None:
            return
        lane.discard(record)
        if lane.key is not None:
            self._shares.ceases(lane.key[1])
            if not len(lane):
                del self._lanes[lane.key]

    def served(self, owner: str, tokens: int) -> None:
        """So many tokens of this owner's requests were computed: it counts for whose turn is next."""
        self._shares.served(owner, tokens)

    def records(self) -> Sequence[RequestRecord]:
        """All that wait, in no order."""
        lanes = self._begun, *self._lanes.values()
        return [record for lane in lanes for record in lane.records()] + list(self._held.values())

    def _turn(self, head: RequestRecord) -> tuple[int, int]:
        return self._shares.tokens(head.spec.owner), head.arrival


class _Lane:
    """A queue from whose midst requests may go."""

    def __init__(self, key: _Key | None) -> None:
        """`key`: None for the streams that had begun, whoever owns them."""
        self.key = key
        #: Order, arrival, and a number that no other entry has.
        self._heap: list[tuple[int, int, int, RequestRecord]] = []
        self._numbers = itertools.count()
        self._records: dict[int, tuple[int, RequestRecord]] = {}  # arrival → the order that counts

    def __len__(self) -> int:
        return len(self._records)

    def push(self, order: int, record: RequestRecord) -> None:
        """It must not be here. A smaller `order` goes first, then by arrival."""
        self._records[record.arrival] = order, record
        heapq.heappush(self._heap, (order, record.arrival, next(self._numbers), record))

    def first(self) -> RequestRecord | None:
        while self._heap:
            if self._counts(self._heap[0]):
                return self._heap[0][3]
            heapq.heappop(self._heap)
        return None

    def discard(self, record: RequestRecord) -> None:
        """It must be here."""
        del self._records[record.arrival]
        # It stays in the heap until its turn: rebuilt when such are most of the heap.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._records):
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapq.heapify(self._heap)

    def records(self) -> list[RequestRecord]:
        return [record for _, record in self._records.values()]

    def _counts(self, entry: tuple[int, int, int, RequestRecord]) -> bool:
        known = self._records.get(entry[1])
        return known is not None and known[0] == entry[0]
