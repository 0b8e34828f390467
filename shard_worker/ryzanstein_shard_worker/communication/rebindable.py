"""The handler that layers hold: it stays, the groups come and go."""

from __future__ import annotations

from .forwarding import ForwardingHandler
from .handler import CommunicationHandler
from .unbound import UnboundHandler


class RebindableHandler(ForwardingHandler):
    """One rank's place in a group of a given size. Unbound, every operation fails with CommunicationError."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(UnboundHandler(rank, world_size))

    def bind(self, handler: CommunicationHandler) -> None:
        """Enters a group.

        Raises:
            ValueError: the handler is of another rank or size than the layers were built for.
        """
        if (handler.rank, handler.world_size) != (self.rank, self.world_size):
            raise ValueError(
                f"layers of rank {self.rank} of {self.world_size} can't use the group handler of "
                f"rank {handler.rank} of {handler.world_size}"
            )
        self._target = handler
        self.backend = handler.backend
        self.graphs = handler.graphs

    def unbind(self) -> None:
        """Leaves the group. Closing its handler is its owner's business."""
        self._target = UnboundHandler(self.rank, self.world_size)
        self.backend = self._target.backend
        self.graphs = self._target.graphs
