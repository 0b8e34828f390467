"""A handler that stands before another one."""

from __future__ import annotations

from torch import Tensor

from .handler import CommunicationHandler, LastOperation


class ForwardingHandler(CommunicationHandler):
    """Passes every operation on to `target`. Subclasses change what they are for."""

    def __init__(self, target: CommunicationHandler) -> None:
        self._target = target
        self.rank = target.rank
        self.world_size = target.world_size
        self.backend = target.backend
        self.graphs = target.graphs

    @property
    def last(self) -> LastOperation:
        return self._target.last

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return self._target.all_reduce(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self._target.all_gather(tensor)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        return self._target.reduce_scatter(tensor)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        return self._target.broadcast(tensor, source)

    def send(self, tensor: Tensor, to: int) -> None:
        self._target.send(tensor, to)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        return self._target.receive(tensor, source)

    def barrier(self) -> None:
        self._target.barrier()

    def settle(self) -> None:
        self._target.settle()

    def check(self) -> None:
        self._target.check()

    def capturing(self) -> None:
        self._target.capturing()

    def captured(self) -> int:
        return self._target.captured()

    def replayed(self, mark: int) -> None:
        self._target.replayed(mark)

    def abort(self, reason: str) -> None:
        self._target.abort(reason)

    def close(self) -> None:
        self._target.close()
