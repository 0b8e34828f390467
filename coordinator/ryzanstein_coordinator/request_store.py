"""All requests by id: those that live, and for a while those that ended. Pure: the time is passed in."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ryzanstein.wire import not_found

from .admission import Amount
from .errors import already_exists, shown
from .requests import RequestKey, RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionLimits:
    """How long, and how many, requests are kept after their end, so that a caller can come back for the
    rest."""

    retain_s: float = 120.0
    max_ended: int = 8192
    #: Of prompts and outputs together.
    max_ended_bytes: int = 256 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Reservation:
    """A request on its way in: its id is taken and what it asks for is counted, but it is not tokenised yet."""

    key: RequestKey
    amount: Amount
    cancelled: bool = False
    #: Set when the request is in, or will not come in.
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class RequestStore:
    """Ids are unique among the living of one owner; a new request may take the id of one that ended."""

    def __init__(self, limits: RetentionLimits) -> None:
        self._limits = limits
        self._coming: dict[RequestKey, Reservation] = {}
        self._living: dict[RequestKey, RequestRecord] = {}
        self._ended: OrderedDict[RequestKey, RequestRecord] = OrderedDict()  # oldest end first
        self._ended_bytes = 0
        self._total = Amount()
        self._of_owners: dict[str, Amount] = {}

    @property
    def unfinished(self) -> int:
        """Requests that live or are on their way in."""
        return len(self._living) + len(self._coming)

    @property
    def total(self) -> Amount:
        """Of all unfinished requests."""
        return self._total

    def of_owner(self, owner: str) -> Amount:
        """Of the unfinished requests of one owner."""
        return self._of_owners.get(owner, Amount())

    def owners_with(self, owner: str) -> int:
        """How many owners have unfinished requests, if this one has one too."""
        return len(self._of_owners) + (owner not in self._of_owners)

    def living(self) -> list[RequestRecord]:
        return list(self._living.values())

    def check_free(self, key: RequestKey) -> None:
        """Raises ALREADY_EXISTS if a living request has the id."""
        if key in self._living or key in self._coming:
            raise already_exists(key[1])

    def reserve(self, key: RequestKey, amount: Amount) -> Reservation:
        """Takes the id. Raises ALREADY_EXISTS."""
        self.check_free(key)
        reservation = Reservation(key, amount)
        self._coming[key] = reservation
        self._add(key, amount)
        return reservation

    def resize(self, reservation: Reservation, amount: Amount) -> None:
        """More is known of the request that comes in."""
        self._add(reservation.key, amount - reservation.amount)
        reservation.amount = amount

    def release(self, reservation: Reservation) -> None:
        """The request did not come in, or is in now."""
        if self._coming.pop(reservation.key, None) is not None:
            self._add(reservation.key, Amount() - reservation.amount)
        reservation.settled.set()

    def add(self, record: RequestRecord) -> None:
        """It lives. An ended request whose id it takes is forgotten."""
        self._drop_ended(record.key)
        self._living[record.key] = record
        self._add(record.key, record.amount)

    def add_ended(self, record: RequestRecord) -> None:
        """One from a former life of the coordinator."""
        self._drop_ended(record.key)
        self._ended[record.key] = record
        self._ended_bytes += record.kept_bytes

    def retire(self, record: RequestRecord) -> None:
        """It ended."""
        if self._living.pop(record.key, None) is not None:
            self._add(record.key, Amount() - record.amount)
        self.add_ended(record)

    def revive(self, record: RequestRecord) -> None:
        """It lives again."""
        self.add(record)

    def is_coming(self, key: RequestKey) -> bool:
        """A request of this id is on its way in."""
        return key in self._coming

    def has_ended(self, key: RequestKey) -> bool:
        """A request of this id has ended and is kept."""
        return key in self._ended

    def find(self, key: RequestKey) -> RequestRecord | Reservation:
        """The living or ended request. Raises NOT_FOUND."""
        found = self._living.get(key) or self._coming.get(key) or self._ended.get(key)
        if found is None:
            raise not_found(
                f"there is no request {shown(key[1])}; requests are kept for {self._limits.retain_s:g} s "
                "after their end"
            )
        return found

    def forget(self, now: float) -> Iterator[RequestRecord]:
        """Takes out those that ended too long ago, or longest ago if there are too many."""
        while self._ended:
            oldest = next(iter(self._ended.values()))
            over = (
                len(self._ended) > self._limits.max_ended or self._ended_bytes > self._limits.max_ended_bytes
            )
            if not over and now < (oldest.timings.ended_at or 0.0) + self._limits.retain_s:
                return
            self._drop_ended(oldest.key)
            yield oldest

    def next_forget_at(self) -> float | None:
        """When the oldest ended request is forgotten."""
        if not self._ended:
            return None
        return (next(iter(self._ended.values())).timings.ended_at or 0.0) + self._limits.retain_s

    def _drop_ended(self, key: RequestKey) -> None:
        record = self._ended.pop(key, None)
        if record is not None:
            self._ended_bytes -= record.kept_bytes

    def _add(self, key: RequestKey, amount: Amount) -> None:
        self._total += amount
        own = self._of_owners.get(key[0], Amount()) + amount
        if own.requests:
            self._of_owners[key[0]] = own
        else:
            self._of_owners.pop(key[0], None)
