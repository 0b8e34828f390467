"""What a worker tells its service manager: what it is doing, and that it gets on with it."""

from __future__ import annotations

import asyncio

import structlog

from ryzanstein.service_manager import ServiceManager
from ryzanstein.v1 import cluster_pb2

from .engine import Engine
from .engine_status import EngineStatus
from .membership import Membership
from .pulse import SILENCE_S

log = structlog.get_logger(__name__)

_EVERY_S = 0.5


def describe(status: EngineStatus, *, rank: tuple[int, int] | None, coordinator: str, connected: bool) -> str:
    """One line for people.

    Args:
        status: the engine's.
        rank: (which, of how many), in a group that stands.
        coordinator: HOST:PORT.
        connected: whether it hears this worker.
    """
    away = "" if connected else f"; the coordinator at {coordinator} is away"
    if status.state == cluster_pb2.WORKER_STATE_ACTIVE:
        place = "" if rank is None else f" as rank {rank[0]} of {rank[1]}"
        return f"serving epoch {status.epoch}{place}{away}"
    if status.state == cluster_pb2.WORKER_STATE_LOADING:
        if status.phase == "loading":
            return f"loading {status.load_progress * 100:.0f} %{away}"
        return f"{status.phase}, epoch {status.epoch}{away}"
    return f"standby: {status.phase}" if connected else f"waiting for the coordinator at {coordinator}"


async def report(manager: ServiceManager, engine: Engine, membership: Membership, coordinator: str) -> None:
    """Until it is cancelled. Runs in the control loop: one that stands still tells nothing."""
    watchdog_s = manager.watchdog_s
    every_s = _EVERY_S if watchdog_s is None else min(_EVERY_S, watchdog_s / 4)
    was_stuck = False
    while manager.listens:
        status, group = engine.status, engine.membership
        if not membership.draining:  # that it leaves has been told
            rank = None if group is None else (group.group.rank, group.group.world_size)
            manager.status(
                describe(status, rank=rank, coordinator=coordinator, connected=membership.connected)
            )
        if watchdog_s is not None:
            stuck = not engine.pulse.gets_on(watchdog_s, None if group is None else group.progress)
            if not stuck:
                manager.alive()
            elif not was_stuck:
                log.error("engine_stuck", phase=status.phase, epoch=status.epoch)
            was_stuck = stuck
            if status.state == cluster_pb2.WORKER_STATE_LOADING and not stuck:
                manager.extend(watchdog_s + SILENCE_S)
        await asyncio.sleep(every_s)
