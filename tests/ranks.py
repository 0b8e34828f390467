"""Runs a function as several ranks at once: threads of this process that meet at a barrier.

    outputs = run_ranks(3, lambda handler: ColumnParallelLinear(..., handler=handler)(x))

A whole implementation of the group's operations for tests of what is built on them: nothing is serialised or
sent, so a test of four ranks takes milliseconds. The real backends have their own tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.communication.backend import BackendHandler

T = TypeVar("T")

_TIMEOUT_S = 30.0


class ThreadGroup:
    """What the ranks share: a barrier, and a place for each rank's tensor."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size)
        self.places: list[Tensor] = [torch.empty(0)] * world_size
        self.mail = {
            (a, b): threading.Semaphore(0) for a in range(world_size) for b in range(world_size) if a != b
        }
        self.letters: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in self.mail}


class ThreadHandler(BackendHandler):
    """One thread's place in a `ThreadGroup`. Sums are taken in rank order, half precisions in float32."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        super().__init__(rank=rank, world_size=group.world_size, backend="threads", timeout_s=_TIMEOUT_S)
        self._group = group

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, copied: the originals may be overwritten as soon as all have passed."""
        self._group.places[self.rank] = tensor.detach()
        self._meet()
        copies = [place.clone() for place in self._group.places]
        self._meet()
        return copies

    def _meet(self) -> None:
        try:
            self._group.barrier.wait(self.timeout_s)
        except threading.BrokenBarrierError:
            self._fail("another rank failed or did not come")

    def _all_reduce(self, tensor: Tensor) -> None:
        tensor.detach().copy_(_sum(self._exchange(tensor)))

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        out.copy_(torch.stack(self._exchange(tensor)))

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        out.copy_(_sum([given[self.rank] for given in self._exchange(tensor)]))

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.detach().copy_(self._exchange(tensor)[source])

    def _send(self, tensor: Tensor, to: int) -> None:
        self._group.letters[self.rank, to].append(tensor.clone())
        self._group.mail[self.rank, to].release()

    def _receive(self, tensor: Tensor, source: int) -> None:
        if not self._group.mail[source, self.rank].acquire(timeout=self.timeout_s):
            self._fail("nothing came", source)
        tensor.detach().copy_(self._group.letters[source, self.rank].pop(0))

    def _barrier(self) -> None:
        self._meet()

    def _abort(self, reason: str) -> None:
        self._group.barrier.abort()

    def _close(self) -> None:
        self._group.barrier.abort()


def run_ranks(world_size: int, function: Callable[[CommunicationHandler], T]) -> list[T]:
    """Calls `function` once per rank, in threads of their own; → results in rank order.

    The first rank that raises breaks the group for the others, and its exception is raised here.
    """
    group = ThreadGroup(world_size)
    first: list[BaseException] = []

    def rank_main(rank: int) -> T:
        try:
            return function(ThreadHandler(group, rank))
        except BaseException as error:
            first.append(error)
            group.barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(rank_main, rank) for rank in range(world_size)]
    if first:
        _reraise(first[0])
    return [future.result() for future in futures]


def _reraise(error: BaseException) -> NoReturn:
    raise error


def _sum(tensors: list[Tensor]) -> Tensor:
    dtype = tensors[0].dtype
    wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
    total = tensors[0].to(wide)
    for tensor in tensors[1:]:
        total = total + tensor.to(wide)
    return total.to(dtype)
