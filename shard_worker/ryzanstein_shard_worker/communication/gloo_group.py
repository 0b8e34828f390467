"""A gloo group that can be left at any time: formed over any store, without torch's default group.

It is used for its point-to-point messages only. Over them a collective is as fast as gloo's own (two to
three times faster when small: no queue, no worker thread), sums are ours to order, and a rank that does not
answer has a name.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from .attempt import attempt_in_thread
from .sockets import Endpoints, connections_since, cut, socket_inodes, wait_for_cut

#: Tags of messages: numbers below are free for operations.
_ENDPOINTS_TAG = 1 << 30
_ENDPOINTS_BYTES = 16 * 1024
_GRACE_S = 0.25


class GlooGroup:
    """Connections of one rank to all others. `form` makes one; `cut` frees whoever is blocked in it."""

    def __init__(self, process_group: Any, store: Store, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._process_group: Any = process_group
        self._store: Store | None = store  # the C++ side would not keep a store of ours alive
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_cut = False

    def start_send(self, tensor: Tensor, to: int, tag: int) -> Any:
        """Begins to send a contiguous CPU tensor. The work's `wait(timeout)` ends it."""
        return self._process_group.send([tensor], to, tag)

    def start_receive(self, tensor: Tensor, source: int, tag: int) -> Any:
        """Begins to fill a contiguous CPU tensor. The work's `wait(timeout)` ends it."""
        return self._process_group.recv([tensor], source, tag)

    def cut(self) -> None:
        """Fails every operation of this rank, now and later, and its counterpart at the peer. Any thread."""
        with self._lock:
            self._is_cut = True
            for connection in self._connections.values():
                cut(connection)

    def watch(self, on_lost: Callable[[int], None]) -> None:
        """From now on calls `on_lost(rank)`, once, on a thread of its own, when a rank closes its connection.

        A moment later cuts all others too: gloo tells only those who wait for that very rank, the rest would
        sit out their timeout.
        """
        with self._lock:
            connections = dict(self._connections)
        threading.Thread(
            target=self._watch, args=(connections, on_lost), name="gloo-watch", daemon=True
        ).start()

    def _watch(self, connections: dict[int, socket.socket], on_lost: Callable[[int], None]) -> None:
        lost = wait_for_cut(connections)
        if self._is_cut or lost is None:  # by this rank itself
            return
        on_lost(lost)
        # A rank that left in good order may have had all of an operation that others are still busy with.
        time.sleep(_GRACE_S)
        self.cut()

    def close(self, *pending: object) -> None:
        """Drops the group and what its unfinished operations still point to.

        In a thread of its own, because dropping a group waits for its unfinished operations (milliseconds
        once the connections are cut). Not a daemon: an interpreter that ends in the middle of it would
        abort the process.
        """
        self.cut()
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections = {}
        box = [self._process_group, self._store, pending]
        self._process_group = self._store = None
        threading.Thread(target=box.clear, name="gloo-reaper").start()

    def _find_connections(self, candidates: dict[Endpoints, socket.socket], timeout: timedelta) -> None:
        """Keeps, of the sockets that appeared, those that lead to a rank of this group; learns which."""
        mine = _encode_endpoints(list(candidates))
        theirs = torch.empty((self.world_size, _ENDPOINTS_BYTES), dtype=torch.uint8)
        peers = [peer for peer in range(self.world_size) if peer != self.rank]
        works = [self.start_receive(theirs[peer], peer, _ENDPOINTS_TAG) for peer in peers]
        works += [self.start_send(mine, peer, _ENDPOINTS_TAG) for peer in peers]
        for work in works:
            work.wait(timeout)
        with self._lock:
            for peer in peers:
                for endpoints in _decode_endpoints(theirs[peer]):
                    if peer not in self._connections and endpoints.mirrored() in candidates:
                        self._connections[peer] = candidates.pop(endpoints.mirrored())
        missing = [peer for peer in peers if peer not in self._connections]
        if missing:
            raise RuntimeError(f"no connection to rank {missing[0]} was found among this process's sockets")


def form_gloo_group(
    store: Store,
    *,
    prefix: str,
    rank: int,
    world_size: int,
    host: str,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> GlooGroup:
    """Connects this rank to all others, listening on `host` only.

    `cancelled` is asked every few milliseconds: when it says yes the call ends with InterruptedError while
    the abandoned attempt runs into its own timeout.

    Raises:
        RuntimeError: the group could not be formed; the message is torch's.
        InterruptedError: `cancelled` said yes.
    """
    return attempt_in_thread(
        lambda: _form(store, prefix, rank, world_size, host=host, timeout_s=timeout_s),
        GlooGroup.close,
        name="gloo-form",
        timeout_s=math.inf,  # the attempt has its own
        cancelled=cancelled,
    )


def _form(store: Store, prefix: str, rank: int, world_size: int, *, host: str, timeout_s: float) -> GlooGroup:
    timeout = timedelta(seconds=timeout_s)
    # The public way, init_process_group, ties a process to one default group.
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    options._threads = 1  # for collectives, which are not used
    before = socket_inodes()
    process_group = ProcessGroupGloo(PrefixStore(prefix, store), rank, world_size, options)
    group = GlooGroup(process_group, store, rank, world_size)
    candidates = connections_since(before)
    try:
        group._find_connections(candidates, timeout)
    except BaseException:
        group.close()
        raise
    finally:
        for connection in candidates.values():  # not ours
            connection.close()
    return group


def _encode_endpoints(endpoints: list[Endpoints]) -> Tensor:
    """→ [_ENDPOINTS_BYTES] uint8, padded with spaces. The newest are kept if there are too many."""
    while True:
        data = json.dumps([[e.local, e.remote] for e in endpoints]).encode()
        if len(data) <= _ENDPOINTS_BYTES:
            return torch.frombuffer(bytearray(data.ljust(_ENDPOINTS_BYTES)), dtype=torch.uint8)
        endpoints = endpoints[len(endpoints) // 2 :]


def _decode_endpoints(data: Tensor) -> list[Endpoints]:
    with contextlib.suppress(ValueError):
        return [Endpoints(local=local, remote=remote) for local, remote in json.loads(bytes(data.tolist()))]
    return []
