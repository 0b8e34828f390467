"""The place of a group that is not formed: layers are built before their first epoch, and outlive every
one.
"""

from __future__ import annotations

from torch import Tensor

from .backend import BackendHandler


class UnboundHandler(BackendHandler):
    """Knows its rank and the group's size; every operation fails."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank=rank, world_size=world_size, backend="none", timeout_s=1.0)
        self._broken = ("this rank is in no group", None)

    def _all_reduce(self, tensor: Tensor) -> None:
        raise AssertionError("refused before it is reached")

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        raise AssertionError("refused before it is reached")

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        raise AssertionError("refused before it is reached")

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        raise AssertionError("refused before it is reached")

    def _send(self, tensor: Tensor, to: int) -> None:
        raise AssertionError("refused before it is reached")

    def _receive(self, tensor: Tensor, source: int) -> None:
        raise AssertionError("refused before it is reached")

    def _barrier(self) -> None:
        raise AssertionError("refused before it is reached")

    def _abort(self, reason: str) -> None:
        pass

    def _close(self) -> None:
        pass
