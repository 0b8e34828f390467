"""What every backend shares: numbers, checks, dense memory and the first failure."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Concatenate, Literal, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from ryzanstein.failpoints import failpoint

from ..memory_errors import is_out_of_memory
from .errors import CommunicationError
from .finite import holds_non_finite, spoil
from .handler import CommunicationHandler, LastOperation

P = ParamSpec("P")
T = TypeVar("T")

#: What can be summed. Half precisions are accumulated in float32 and rounded once.
SUMMABLE_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64}
)


def non_finite_reason(rank: int) -> str:
    """What is said of a rank whose part of a sum is of no use."""
    return f"what rank {rank} gave to the sum holds NaN or infinity"


def _operation(
    method: Callable[Concatenate[BackendHandler, P], T],
) -> Callable[Concatenate[BackendHandler, P], T]:
    """An operation that fails on this rank, for a reason of this rank's own, is a failure of the group with this
    rank to blame. Memory that ran out and a lost device are told as what they are."""

    @functools.wraps(method)
    def run(self: BackendHandler, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
                raise
            self._fail(f"it failed on rank {self.rank}: {error}", self.rank)

    return run


class BackendHandler(CommunicationHandler):
    """Numbers and checks every operation and hands it, with contiguous tensors, to the backend's own
    method.
    """

    graphs: Literal["free", "bound", "none"] = "none"

    def __init__(self, *, rank: int, world_size: int, backend: str, timeout_s: float) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside of a group of {world_size}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        self.rank = rank
        self.world_size = world_size
        self.backend = backend
        self.timeout_s = timeout_s
        self._last = LastOperation("none", 0)
        self._broken: tuple[str, int | None] | None = None

    @property
    def last(self) -> LastOperation:
        return self._last

    @_operation
    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._begin("all_reduce", tensor)
        self._check_summable(tensor)
        if tensor.is_contiguous():
            self._all_reduce(tensor)
        else:
            dense = tensor.detach().contiguous()
            self._all_reduce(dense)
            tensor.detach().copy_(dense)
        return tensor

    @_operation
    def all_gather(self, tensor: Tensor) -> Tensor:
        self._begin("all_gather", tensor)
        out = torch.empty((self.world_size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        self._all_gather(out, tensor.detach().contiguous())
        return out

    @_operation
    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        self._begin("reduce_scatter", tensor)
        self._check_summable(tensor)
        if tensor.dim() == 0 or tensor.shape[0] != self.world_size:
            raise ValueError(
                f"reduce_scatter takes [world_size, ...]: the first dimension of {tuple(tensor.shape)} "
                f"must be {self.world_size}"
            )
        out = torch.empty(tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
        self._reduce_scatter(out, tensor.detach().contiguous())
        return out

    @_operation
    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        self._begin("broadcast", tensor)
        self._check_rank(source)
        if tensor.is_contiguous():
            self._broadcast(tensor, source)
        else:
            dense = tensor.detach().contiguous()
            self._broadcast(dense, source)
            if self.rank != source:
                tensor.detach().copy_(dense)
        return tensor

    @_operation
    def send(self, tensor: Tensor, to: int) -> None:
        self._begin("send", tensor)
        self._check_peer(to)
        self._send(tensor.detach().contiguous(), to)

    @_operation
    def receive(self, tensor: Tensor, source: int) -> Tensor:
        self._begin("receive", tensor)
        self._check_peer(source)
        if tensor.is_contiguous():
            self._receive(tensor, source)
        else:
            dense = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            self._receive(dense, source)
            tensor.detach().copy_(dense)
        return tensor

    @_operation
    def barrier(self) -> None:
        self._begin("barrier")
        self._barrier()

    def settle(self) -> None:
        pass

    def check(self) -> None:
        if self._broken is not None:
            raise self._error()

    def capturing(self) -> None:
        pass

    def captured(self) -> int:
        return 0

    def replayed(self, mark: int) -> None:
        self._begin("replay")

    def abort(self, reason: str) -> None:
        if self._broken is None:
            self._broken = (f"aborted: {reason}", None)
        self._abort(reason)

    def close(self) -> None:
        if self._broken is None:
            self._broken = ("the group is closed", None)
        self._close()

    @abstractmethod
    def _all_reduce(self, tensor: Tensor) -> None: ...

    @abstractmethod
    def _all_gather(self, out: Tensor, tensor: Tensor) -> None: ...

    @abstractmethod
    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None: ...

    @abstractmethod
    def _broadcast(self, tensor: Tensor, source: int) -> None: ...

    @abstractmethod
    def _send(self, tensor: Tensor, to: int) -> None: ...

    @abstractmethod
    def _receive(self, tensor: Tensor, source: int) -> None: ...

    @abstractmethod
    def _barrier(self) -> None: ...

    @abstractmethod
    def _abort(self, reason: str) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _begin(self, operation: str, tensor: Tensor | None = None) -> None:
        self._last = LastOperation(operation, self._last.sequence + 1)
        if self._broken is not None:
            raise self._error()
        if failpoint(f"collective.{operation}") and tensor is not None:
            spoil(tensor)

    def _check_finite(self, tensor: Tensor) -> None:
        """On a CPU, before this rank's part of a sum leaves it. Nobody must go on with what would come of it."""
        if holds_non_finite(tensor):
            self._fail(non_finite_reason(self.rank), self.rank)

    def _fail(self, reason: str, peer: int | None = None) -> NoReturn:
        """Breaks the handler and raises. An abort that came first is the reason that counts."""
        if self._broken is None:
            self._broken = (reason, peer)
        raise self._error() from None

    def _error(self) -> CommunicationError:
        assert self._broken is not None
        reason, peer = self._broken
        operation, sequence = self._last
        return CommunicationError(
            rank=self.rank, peer=peer, operation=operation, sequence=sequence, reason=reason
        )

    def _check_summable(self, tensor: Tensor) -> None:
        if tensor.dtype not in SUMMABLE_DTYPES:
            raise ValueError(f"{self._last.operation} can't sum {tensor.dtype}")

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(f"{self._last.operation}: no rank {rank} in a group of {self.world_size}")

    def _check_peer(self, rank: int) -> None:
        self._check_rank(rank)
        if rank == self.rank:
            raise ValueError(f"{self._last.operation}: rank {rank} can't exchange tensors with itself")
