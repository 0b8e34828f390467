"""The group over TCP: ranks on several hosts, and wherever nothing faster can be had."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .backend import BackendHandler
from .gloo_group import GlooGroup
from .sums import ordered_sum

#: From here on a sum is spread over the ranks: each sums a slice and the slices are gathered.
_SPREAD_SUM_BYTES = 64 * 1024
#: Point-to-point messages have a tag of their own; collectives are tagged with their number, below it.
_PAIR_TAG = (1 << 30) + 1


class GlooHandler(BackendHandler):
    """Collectives over the connections of a `GlooGroup`, every rank directly with every other.

    CUDA tensors go through host memory.
    """

    def __init__(self, group: GlooGroup, *, timeout_s: float) -> None:
        super().__init__(rank=group.rank, world_size=group.world_size, backend="gloo", timeout_s=timeout_s)
        self._group = group
        self._peers = [peer for peer in range(group.world_size) if peer != group.rank]
        self._collectives = 0
        # What unfinished operations of a broken group still point to.
        self._pending: list[object] = []
        self._first_lost: int | None = None
        group.watch(self._lost)

    def _all_reduce(self, tensor: Tensor) -> None:
        host = tensor.detach().cpu()
        flat = host.view(-1)
        self._check_finite(flat)
        if self.world_size > 2 and flat.numel() * flat.element_size() >= _SPREAD_SUM_BYTES:
            self._spread_sum(flat)
        else:
            rows = torch.empty((self.world_size, flat.numel()), dtype=flat.dtype)
            self._gather(rows, flat)
            ordered_sum(rows, flat)
        _copy_back(tensor, host)

    def _spread_sum(self, flat: Tensor) -> None:
        """flat [n]: rank r sums elements n*r/N up to n*(r+1)/N, then every rank gets every slice."""
        n = flat.numel()
        bounds = [n * r // self.world_size for r in range(self.world_size + 1)]
        slices = [flat[start:stop] for start, stop in itertools.pairwise(bounds)]
        rows = torch.empty((self.world_size, slices[self.rank].numel()), dtype=flat.dtype)
        rows[self.rank].copy_(slices[self.rank])
        self._exchange({p: slices[p] for p in self._peers}, {p: rows[p] for p in self._peers})
        ordered_sum(rows, slices[self.rank])
        # A copy: the messages of the peers arrive in the same tensor.
        mine = slices[self.rank].clone()
        self._exchange(dict.fromkeys(self._peers, mine), {p: slices[p] for p in self._peers})

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        rows = out if out.device.type == "cpu" else torch.empty(out.shape, dtype=out.dtype)
        self._gather(rows.view(self.world_size, -1), tensor.cpu().view(-1))
        _copy_back(out, rows)

    def _gather(self, rows: Tensor, flat: Tensor) -> None:
        """flat [n] of every rank → rows [world, n]."""
        rows[self.rank].copy_(flat)
        self._exchange(dict.fromkeys(self._peers, flat), {p: rows[p] for p in self._peers})

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        parts = tensor.cpu()
        self._check_finite(parts)
        rows = torch.empty_like(parts)
        rows[self.rank].copy_(parts[self.rank])
        self._exchange({p: parts[p] for p in self._peers}, {p: rows[p] for p in self._peers})
        total = torch.empty(out.shape, dtype=out.dtype)
        ordered_sum(rows, total)
        out.copy_(total)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        host = tensor.detach().cpu()
        if self.rank == source:
            self._exchange(dict.fromkeys(self._peers, host), {})
        else:
            self._exchange({}, {source: host})
            _copy_back(tensor, host)

    def _send(self, tensor: Tensor, to: int) -> None:
        self._exchange({to: tensor.cpu()}, {}, tag=_PAIR_TAG)

    def _receive(self, tensor: Tensor, source: int) -> None:
        host = tensor.detach().cpu()
        self._exchange({}, {source: host}, tag=_PAIR_TAG)
        _copy_back(tensor, host)

    def _barrier(self) -> None:
        token = torch.zeros(1, dtype=torch.uint8)
        rows = torch.zeros((self.world_size, 1), dtype=torch.uint8)
        self._exchange(dict.fromkeys(self._peers, token), {p: rows[p] for p in self._peers})

    def _abort(self, reason: str) -> None:
        self._group.cut()

    def _close(self) -> None:
        self._group.close(*self._pending)
        self._pending = []

    def _exchange(
        self, sends: dict[int, Tensor], receives: dict[int, Tensor], *, tag: int | None = None
    ) -> None:
        """One message to and from each of the given ranks, all at once."""
        if tag is None:
            self._collectives += 1
            tag = self._collectives % (1 << 30)
        deadline = time.monotonic() + self.timeout_s
        works: list[tuple[int, Any]] = []
        peer = self.rank  # the one in hand when something fails
        try:
            for peer, tensor in receives.items():
                works.append((peer, self._group.start_receive(tensor, peer, tag)))
            for peer, tensor in sends.items():
                works.append((peer, self._group.start_send(tensor, peer, tag)))
            for peer, work in works:  # noqa: B007 - used where it fails
                # gloo takes 0 for no timeout at all.
                remaining_s = max(deadline - time.monotonic(), 0.001)
                work.wait(timedelta(seconds=remaining_s))
        except RuntimeError as error:
            self._pending += [works, sends, receives]
            self._explain(error, peer, deadline)

    def _explain(self, error: RuntimeError, peer: int, deadline: float) -> None:
        if self._first_lost is not None:
            peer = self._first_lost  # others may have left because of it
        elif time.monotonic() >= deadline:
            self._fail(f"no answer from rank {peer} within {self.timeout_s:g} s", peer)
        self._fail(f"rank {peer} closed the connection ({_gist(error)})", peer)

    def _lost(self, peer: int) -> None:
        """Called on the watching thread. An operation that does not need the rank any more may still end well."""
        self._first_lost = peer


def _copy_back(tensor: Tensor, host: Tensor) -> None:
    if tensor.device.type != "cpu":
        tensor.detach().copy_(host)


def _gist(error: RuntimeError) -> str:
    """gloo's message without its source position and its advice."""
    return str(error).partition("] ")[2].partition(". This is")[0] or str(error)
