"""How the leader's plan of a step reaches the other ranks: never over the channel of the tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod


class StepChannel(ABC):
    """Messages of any length, in order, from rank 0 to every other rank; nothing is lost and none is overrun.

    The engine thread sends or receives. `abort` may be called from any thread. Failures are
    `CommunicationError`s, and after the first one every call fails at once.
    """

    rank: int
    world_size: int

    @abstractmethod
    def send(self, payload: bytes) -> None:
        """On rank 0: to all others. Waits only when a rank is several messages behind.

        Raises:
            CommunicationError: a rank is gone, or did not make room within the group's timeout; names it.
        """

    @abstractmethod
    def receive(self, timeout_s: float) -> bytes:
        """On the others: the next message.

        Raises:
            CommunicationError: nothing came within `timeout_s`, the leader is gone, or the group was aborted.
        """

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Breaks the channel on this rank: a blocked call of another thread fails within milliseconds."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the channel holds. No call may be running or follow."""
