"""The real router, and a look at every message of a leader that it records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein.v1.shard_worker_pb2 import ExecuteResponse
from ryzanstein_coordinator.observers import GroupEvents
from ryzanstein_coordinator.requests import Clock
from ryzanstein_coordinator.router import Router, RouterConfig
from ryzanstein_coordinator.serving_group import ServingGroup

if TYPE_CHECKING:
    from .checks import Checks


class WatchedRouter(Router):
    """Changes nothing."""

    def __init__(self, config: RouterConfig, *, events: GroupEvents, clock: Clock, checks: Checks) -> None:
        super().__init__(config, events=events, clock=clock)
        self._checks = checks

    def _step(self, group: ServingGroup, response: ExecuteResponse) -> None:
        before = [
            (record, len(record.output), record.group_id)
            for output in response.outputs
            if (record := group.running.get(output.sequence_id)) is not None
        ]
        super()._step(group, response)
        for record, length, placed_in in before:
            if len(record.output) != length:
                self._checks.accepted(group.group_id, group.epoch, response.epoch, placed_in)
