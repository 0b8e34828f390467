"""A group of one: nothing to exchange."""

from __future__ import annotations

from torch import Tensor

from .backend import BackendHandler, non_finite_reason
from .finite import DeviceFlags, first_non_finite
from .step_channel import StepChannel


class SingleHandler(BackendHandler):
    """World size 1. Operations are numbered and checked like everywhere else, and move nothing."""

    graphs = "free"

    def __init__(self) -> None:
        super().__init__(rank=0, world_size=1, backend="single", timeout_s=1.0)
        self._flags = DeviceFlags()
        self._magnitudes: Tensor | None = None

    def settle(self) -> None:
        self._magnitudes = self._flags.take()

    def check(self) -> None:
        super().check()
        magnitudes, self._magnitudes = self._magnitudes, None
        if magnitudes is not None and first_non_finite(magnitudes[None]) is not None:
            self._fail(non_finite_reason(self.rank), self.rank)

    def _all_reduce(self, tensor: Tensor) -> None:
        self._look_at(tensor)

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        out[0].copy_(tensor)

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        self._look_at(tensor)
        out.copy_(tensor[0])

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        pass

    def _send(self, tensor: Tensor, to: int) -> None:
        raise AssertionError("a group of one has no peer")

    def _receive(self, tensor: Tensor, source: int) -> None:
        raise AssertionError("a group of one has no peer")

    def _barrier(self) -> None:
        pass

    def _abort(self, reason: str) -> None:
        pass

    def _close(self) -> None:
        pass

    def _look_at(self, tensor: Tensor) -> None:
        if tensor.device.type == "cpu":
            self._check_finite(tensor)
        else:
            self._flags.note(tensor)


class SingleStepChannel(StepChannel):
    """A leader without followers."""

    rank = 0
    world_size = 1

    def send(self, payload: bytes) -> None:
        pass

    def receive(self, timeout_s: float) -> bytes:
        raise AssertionError("a group of one has no follower")

    def abort(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass
