"""What the coordinator tells its service manager: what the cluster is doing, and that the control loop turns."""

from __future__ import annotations

from ryzanstein.service_manager import ServiceManager
from ryzanstein.v1 import operations_pb2

from .group_record import GroupState
from .orchestrator import MultiGPUOrchestrator

_EVERY_S = 1.0


def describe(snapshot: operations_pb2.ClusterSnapshot) -> str:
    """The cluster in one line, for people."""
    if len(snapshot.groups) == 1:
        return _group(snapshot, snapshot.groups[0])
    return "; ".join(f"{group.id}: {_group(snapshot, group)}" for group in snapshot.groups)


def _group(snapshot: operations_pb2.ClusterSnapshot, group: operations_pb2.GroupStatus) -> str:
    match group.state:
        case GroupState.SERVING:
            return f"serving epoch {group.epoch}"
        case GroupState.LOADING:
            ranks = [worker.load_progress for worker in snapshot.workers if worker.group == group.id]
            return f"loading {100 * sum(ranks) / max(1, len(ranks)):.0f} %, epoch {group.epoch}"
        case GroupState.FORMING:
            return f"forming epoch {group.epoch}" if group.epoch else "forming"
        case GroupState.DRAINING:
            return f"draining: {snapshot.requests.running + snapshot.requests.waiting} requests left"
        case _:  # waiting, recovering, degraded: why is what counts
            return f"{group.state}: {group.reason}" if group.reason else group.state


def turns(now_s: float, last_tick_s: float, watchdog_s: float) -> bool:
    """Whether the control loop lets time pass; it does so many times a second. Both on the orchestrator's clock."""
    return now_s - last_tick_s <= watchdog_s / 2


async def report(manager: ServiceManager, orchestrator: MultiGPUOrchestrator) -> None:
    """Until the orchestrator closes. Runs in the event loop: one that stands still tells nothing."""
    watchdog_s = manager.watchdog_s
    every_s = _EVERY_S if watchdog_s is None else min(_EVERY_S, watchdog_s / 4)
    if not manager.listens:
        return
    async for snapshot in orchestrator.watch(every_s):
        if snapshot is not None:
            manager.status(describe(snapshot))
            if any(group.state == GroupState.LOADING for group in snapshot.groups):
                manager.extend(60.0)
        if watchdog_s is not None and turns(orchestrator.now_s, orchestrator.state.last_tick_s, watchdog_s):
            manager.alive()
