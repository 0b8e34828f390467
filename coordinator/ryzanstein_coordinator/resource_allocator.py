"""Memory is planned, not tried: whether a group fits on its devices, how many KV blocks that leaves, and what
would fit if it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from ryzanstein.model_plan import ModelConfig, tensor_parallel_sizes

from .config import OrchestratorConfig
from .group_record import EngineBounds
from .memory_advice import what_would_fit
from .memory_plan import DeviceShare, MemoryPlan, MemoryPlanner
from .worker_record import WorkerRecord


def device_users(workers: Iterable[WorkerRecord]) -> Counter[tuple[str, str]]:
    """Living workers by device."""
    return Counter(_device_of(worker) for worker in workers if worker.alive)


def _device_of(worker: WorkerRecord) -> tuple[str, str]:
    return worker.host_id, worker.device.identity


class ResourceAllocator:
    """Plans the memory of groups of one model under one configuration, and says who can keep to a plan."""

    def __init__(self, config: OrchestratorConfig, model: ModelConfig) -> None:
        self._config = config
        self._model = model
        self._planner = MemoryPlanner(config, model)
        # Called again and again while a group waits: the answer depends on nothing but the arguments.
        self.plan = lru_cache(maxsize=64)(self._plan)

    @property
    def dtype(self) -> str:
        """What the ranks compute in."""
        return self._planner.dtype

    def share(self, worker: WorkerRecord, workers: Iterable[WorkerRecord]) -> DeviceShare:
        """The worker's part of its device. CPU workers of one host share its memory, workers of one GPU the
        GPU's.
        """
        return self.share_among(worker, device_users(workers))

    def share_among(self, worker: WorkerRecord, users: Counter[tuple[str, str]]) -> DeviceShare:
        """The same for one of many workers, of whose devices the `device_users` are known."""
        device = worker.device
        sharing = users[_device_of(worker)]
        if device.kind == "cpu" and sharing == users.total():
            sharing = max(
                sharing, self._config.worker_count
            )  # on one host: those that are still to come, too
        return DeviceShare(
            kind=device.kind,
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            baseline_bytes=device.baseline_bytes,
            sharing=max(1, sharing),
            tiles=device.tiles,
        )

    def holds(self, bounds: EngineBounds, shares: Sequence[DeviceShare]) -> bool:
        """Whether devices can keep to bounds that were planned for others.

        Only sizes count: what is free now says little, because a dead predecessor's memory may not be back
        yet.
        """
        return all(bounds.needed_bytes <= self._planner.allowed(share) for share in shares)

    def has_room(self, share: DeviceShare, wanted_bytes: int) -> bool:
        """Whether a device can hold so much, for a worker that has no pages."""
        return wanted_bytes <= self._planner.allowed(share)

    def smaller_sizes(self, size: int) -> tuple[int, ...]:
        """The numbers of ranks below `size` that the model can be split over, the largest first."""
        return tuple(n for n in reversed(tensor_parallel_sizes(self._model)) if n < size)

    def _plan(
        self, size: int, shares: tuple[DeviceShare, ...], max_model_len: int | None = None
    ) -> MemoryPlan:
        """Plans a group of `size` ranks on these devices, one per rank. `max_model_len`: streams were promised
        that; less does not fit.
        """
        config, planner = self._config, self._planner
        if max_model_len is not None:
            config = replace(config, max_model_len=max_model_len)
            planner = MemoryPlanner(config, self._model)
        plan = planner.plan(size, shares)
        if plan.fits:
            return plan
        advice = what_would_fit(config, self._model, size, shares, plan)
        refusal = plan.refusal + (f": {advice[0]}" if advice else "")
        return replace(plan, refusal=refusal, advice=advice)
