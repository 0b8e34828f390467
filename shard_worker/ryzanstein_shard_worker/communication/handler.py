"""The operations that one rank may use to talk to the others of its group, whatever carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor


class LastOperation(NamedTuple):
    """The operation that was begun last; sequence 0: none yet."""

    operation: str
    sequence: int


class CommunicationHandler(ABC):
    """Collective and point-to-point operations of one rank in one group.

    One thread (the engine's) calls the operations, all ranks in the same order with the same shapes and
    dtypes. `abort` and `last` may be used from any thread.

    Sums are taken in the order of the ranks, half precisions in float32 with one rounding at the end: every
    rank gets the same bits, and an element's sum does not depend on what else is in the tensor.

    What a rank gives to a sum has to be finite. A part that holds NaN or infinity breaks the group, and the error of
    every rank names the one that it came from, before any rank goes on with the sum.

    Every operation ends within the group's timeout, and fails with `CommunicationError`. After the first
    failure the group is broken: every later operation fails at once with the same reason. ValueError tells of
    a call that can't be right (a dtype that can't be summed, a rank that does not exist).

    Attributes:
        rank: of this process, from 0.
        world_size: number of ranks.
        backend: what carries the operations: "single", "shared_memory", "gloo" or "nccl".
        graphs: whether operations may be captured into a CUDA graph. "free": a graph holds nothing of the group and
            outlives it; "bound": it holds the group's communicator and has to go before the group can; "none": they
            happen on the host and can't be captured.
    """

    rank: int
    world_size: int
    backend: str
    graphs: Literal["free", "bound", "none"]

    @property
    @abstractmethod
    def last(self) -> LastOperation:
        """Name and number (from 1) of the operation begun last, for whoever wonders where a rank is stuck."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sums the ranks' tensors [*S] into each of them, in place; returns `tensor`."""

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> Tensor:
        """[*S] of every rank → [world, *S], in rank order."""

    @abstractmethod
    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """[world, *S] of every rank → [*S]: this rank's part of the sum over ranks."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Copies the tensor [*S] of rank `source` into every rank's, in place; returns `tensor`."""

    @abstractmethod
    def send(self, tensor: Tensor, to: int) -> None:
        """Gives the tensor [*S] to rank `to`, which calls `receive`. Then it may be changed again."""

    @abstractmethod
    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """Fills `tensor` [*S], in place, with what rank `source` sends; returns it."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every rank has called it."""

    @abstractmethod
    def settle(self) -> None:
        """The step's operations are launched: whether all that was summed was finite has to be known by the next
        `check`. Every rank calls it once per step; it waits for nothing. Only a GPU's handler has something to do."""

    @abstractmethod
    def check(self) -> None:
        """Raises when the group is broken. After waiting for a device, before what it computed is used:
        operations on CUDA tensors end early, with garbage, when the group breaks."""

    @abstractmethod
    def capturing(self) -> None:
        """Work that is to be captured begins, once to warm up and once in earnest: what was noted of sums before does
        not belong to it."""

    @abstractmethod
    def captured(self) -> int:
        """It ends. → what `replayed` has to be told at each replay of it."""

    @abstractmethod
    def replayed(self, mark: int) -> None:
        """A graph was launched, whose operations count as one of the group: `settle` and `check` see them like others.

        Raises CommunicationError when the group is broken."""

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Breaks the group on this rank: what another thread is blocked in fails within milliseconds."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the group holds. No operation may be running or follow."""
