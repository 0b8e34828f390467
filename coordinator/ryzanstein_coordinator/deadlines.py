"""Whose time is over first. Pure: the time is passed in."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class DeadlineQueue(Generic[Item]):
    """Items by the moment at which their time is over. An item is in it at most once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._entries: dict[int, int] = {}  # id of an item → number of its entry that counts
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: Item, at: float) -> None:
        """Its time is over at `at`; an earlier entry of it no longer counts."""
        self._number += 1
        self._entries[id(item)] = self._number
        heapq.heappush(self._heap, (at, self._number, item))

    def discard(self, item: Item) -> None:
        """Its time does not matter any more."""
        self._entries.pop(id(item), None)
        # What was discarded stays in the heap until its time: rebuilt when it is most of the heap.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._entries):
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapq.heapify(self._heap)

    def expired(self, now: float) -> list[Item]:
        """Takes out those whose time is over, earliest first."""
        items = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._counts(entry):
                del self._entries[id(entry[2])]
                items.append(entry[2])
        return items

    def next_at(self) -> float | None:
        """When the first time is over; None without items. May be early, never late."""
        return self._heap[0][0] if self._heap else None

    def _counts(self, entry: tuple[float, int, Item]) -> bool:
        return self._entries.get(id(entry[2])) == entry[1]
