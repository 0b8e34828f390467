"""Communication's share of a step, live."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .forwarding import ForwardingHandler
from .handler import CommunicationHandler


@dataclass(slots=True)
class OperationTotals:
    """What one kind of operation has cost since the group was formed. Only grows."""

    count: int = 0
    #: Of the tensors that were handed in, on this rank.
    bytes: int = 0
    #: Waiting for slower ranks included.
    seconds: float = 0.0


class CommunicationProfiler(ForwardingHandler):
    """Counts and times every operation of the handler that it wraps; about half a microsecond each.

    The engine thread calls operations, `step_started` and `step_finished`. `ratio` and `totals` may be read
    from any thread. Operations outside of a step (loading, warming up) count in the totals and in no ratio.
    On CUDA devices an operation's time is that of its launch unless the step synchronises: then read the
    device's timeline.
    """

    def __init__(
        self, target: CommunicationHandler, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(target)
        self._clock = clock
        self._operations: dict[str, OperationTotals] = {}
        self._seconds = 0.0
        self._step_started_at: float | None = None
        self._seconds_at_step = 0.0
        self._mean_step_s = 0.0
        self._mean_communication_s = 0.0

    @property
    def ratio(self) -> float:
        """Share of the last steps (an exponential mean over about 16) spent in operations, 0 to 1."""
        mean_step_s = self._mean_step_s
        return min(self._mean_communication_s / mean_step_s, 1.0) if mean_step_s > 0 else 0.0

    @property
    def seconds(self) -> float:
        """All operations together."""
        return self._seconds

    def totals(self) -> dict[str, OperationTotals]:
        """Operation → what it has cost so far; a copy."""
        return {
            name: OperationTotals(totals.count, totals.bytes, totals.seconds)
            for name, totals in list(self._operations.items())
        }

    def step_started(self) -> None:
        """The engine begins a step."""
        self._seconds_at_step = self._seconds
        self._step_started_at = self._clock()

    def step_finished(self) -> None:
        """The step that was begun last is over. Without a beginning it counts nothing."""
        if self._step_started_at is None:
            return
        step_s = self._clock() - self._step_started_at
        communication_s = self._seconds - self._seconds_at_step
        self._step_started_at = None
        # The first step stands for all that there were.
        weight = 1.0 if self._mean_step_s == 0.0 else 1 / 16
        self._mean_step_s += (step_s - self._mean_step_s) * weight
        self._mean_communication_s += (communication_s - self._mean_communication_s) * weight

    def all_reduce(self, tensor: Tensor) -> Tensor:
        started_at = self._clock()
        result = self._target.all_reduce(tensor)
        self._count("all_reduce", tensor.nbytes, started_at)
        return result

    def all_gather(self, tensor: Tensor) -> Tensor:
        started_at = self._clock()
        result = self._target.all_gather(tensor)
        self._count("all_gather", tensor.nbytes, started_at)
        return result

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        started_at = self._clock()
        result = self._target.reduce_scatter(tensor)
        self._count("reduce_scatter", tensor.nbytes, started_at)
        return result

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        started_at = self._clock()
        result = self._target.broadcast(tensor, source)
        self._count("broadcast", tensor.nbytes, started_at)
        return result

    def send(self, tensor: Tensor, to: int) -> None:
        started_at = self._clock()
        self._target.send(tensor, to)
        self._count("send", tensor.nbytes, started_at)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        started_at = self._clock()
        result = self._target.receive(tensor, source)
        self._count("receive", tensor.nbytes, started_at)
        return result

    def barrier(self) -> None:
        started_at = self._clock()
        self._target.barrier()
        self._count("barrier", 0, started_at)

    def _count(self, operation: str, nbytes: int, started_at: float) -> None:
        seconds = self._clock() - started_at
        totals = self._operations.get(operation)
        if totals is None:
            totals = self._operations[operation] = OperationTotals()
        totals.count += 1
        totals.bytes += nbytes
        totals.seconds += seconds
        self._seconds += seconds
