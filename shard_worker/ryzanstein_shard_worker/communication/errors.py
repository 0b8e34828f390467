"""How a collective operation fails."""

from __future__ import annotations


class CommunicationError(Exception):
    """An operation of the group failed; the group is broken and only the next epoch can go on.

    Attributes:
        rank: the rank that raises.
        peer: the rank that did not answer, where the backend knows it.
        operation: name of the operation, "all_reduce" and so on.
        sequence: its number, counted from 1. Ranks that made the same calls have the same numbers.
        reason: what happened.
    """

    def __init__(self, *, rank: int, peer: int | None, operation: str, sequence: int, reason: str) -> None:
        who = "" if peer is None else f" (peer rank {peer})"
        super().__init__(f"rank {rank}: {operation} #{sequence} failed{who}: {reason}")
        self.rank = rank
        self.peer = peer
        self.operation = operation
        self.sequence = sequence
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments don't survive the default way of pickling exceptions.
        return _rebuild, (self.rank, self.peer, self.operation, self.sequence, self.reason)


def _rebuild(rank: int, peer: int | None, operation: str, sequence: int, reason: str) -> CommunicationError:
    return CommunicationError(rank=rank, peer=peer, operation=operation, sequence=sequence, reason=reason)
