"""When a worker that was asked to end may do so: as soon as nobody needs its rank any more.

The coordinator hears that it leaves, gives its rank to a standby, and then says so by `Drain`. Where there is no
standby, the streams that run are finished first, as far as the time allows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

from ryzanstein.program import announce
from ryzanstein.service_manager import ServiceManager

from .engine import Engine
from .membership import Membership

log = structlog.get_logger(__name__)

#: Between two requests a group may have nothing to do for a moment.
IDLE_S = 0.5
#: The coordinator says within milliseconds that a worker without a rank may go, unless a group is just forming.
ANSWER_S = 5.0
#: For leaving the group, and for closing what is open.
_CLOSING_S = 10.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a leaving worker stands."""

    #: It has a rank in a group that stands.
    in_group: bool
    #: The group has sequences to compute.
    busy: bool
    #: The coordinator hears it.
    connected: bool


def why_it_may_go(standing: Standing, *, waited_s: float, lasting_s: float, timeout_s: float) -> str:
    """Empty while it should stay.

    Args:
        standing: as it is now.
        waited_s: since it was asked to end.
        lasting_s: since `standing` became what it is.
        timeout_s: most time that running streams get.
    """
    if waited_s >= timeout_s:
        return "the time is up"
    if standing.in_group:
        return "no stream runs" if not standing.busy and lasting_s >= IDLE_S else ""
    if not standing.connected:
        return "it has no rank, and the coordinator is away"
    return "it has no rank" if lasting_s >= ANSWER_S else ""


class Departure:
    """The end of a worker's process that was asked for."""

    def __init__(
        self, engine: Engine, membership: Membership, manager: ServiceManager, *, timeout_s: float
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._manager = manager
        self._timeout_s = timeout_s
        self._asked = asyncio.Event()
        self._now = asyncio.Event()

    def asked(self, reason: str) -> None:
        """By a signal: it leaves as soon as it may. Asked again, it leaves at once."""
        if self._asked.is_set():
            self._now.set()
        self._begin(reason)

    def told(self, reason: str) -> None:
        """By the coordinator, which has given its rank to another one: it leaves at once."""
        self._begin(reason)
        self._now.set()

    async def wait(self) -> None:
        """Until the process is to end."""
        await self._asked.wait()
        began_at = since = time.monotonic()
        before = self._look()
        while not self._now.is_set():
            now, standing = time.monotonic(), self._look()
            if standing != before:
                before, since = standing, now
            why = why_it_may_go(
                standing, waited_s=now - began_at, lasting_s=now - since, timeout_s=self._timeout_s
            )
            if why:
                log.info("leaving", reason=why)
                return
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._now.wait()
            except TimeoutError:
                continue

    def _begin(self, reason: str) -> None:
        if self._asked.is_set():
            return
        announce("leaving")  # for good: `serve` does not start it again
        log.info("draining", reason=reason)
        self._membership.drain()
        self._manager.stopping("draining", within_s=self._timeout_s + _CLOSING_S)
        self._asked.set()

    def _look(self) -> Standing:
        membership = self._engine.membership
        return Standing(
            in_group=membership is not None,
            busy=membership is not None and membership.progress.busy,
            connected=self._membership.connected,
        )
