"""Joins the group of an epoch, leaves it at once, joins the next one; knows nothing of weights."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
import torch

from ryzanstein.join_calls import Dialer
from ryzanstein.join_proof import Role
from ryzanstein.settings import SettingsError
from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc, shard_worker_pb2

from .communication.errors import CommunicationError
from .communication.forming import GroupFormer
from .communication.handler import CommunicationHandler
from .communication.rendezvous import Attempt, CoordinatorStore, RendezvousError
from .communication.single import SingleHandler, SingleStepChannel
from .communication.step_channel import StepChannel
from .native.library import load_library

log = structlog.get_logger(__name__)

_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104 - recognised here, never bound


@dataclass(frozen=True, slots=True)
class Group:
    """One rank's membership in one epoch of a group."""

    group_id: str
    epoch: int
    rank: int
    world_size: int
    #: What the ranks agreed on.
    backend: shard_worker_pb2.Backend.ValueType
    handler: CommunicationHandler
    step_channel: StepChannel
    duration_s: float

    def abort(self, reason: str) -> None:
        """Frees whoever is blocked in the handler or the channel. From any thread."""
        self.step_channel.abort(reason)
        self.handler.abort(reason)

    def close(self) -> None:
        """Frees what the group holds."""
        self.step_channel.close()
        self.handler.close()


class ProcessGroupManager:
    """The process groups of one worker, one at a time.

    `join` and `leave` belong to the engine thread; `abort` may come from any thread, and ends a join too.
    """

    def __init__(
        self,
        coordinator: str,
        *,
        host: str,
        dialer: Dialer | None = None,
    ) -> None:
        """
        Args:
            coordinator: HOST:PORT of its gRPC server, where the ranks find each other.
            host: this worker's address towards the other ranks; nothing listens on another one.
            dialer: how the coordinator is called; None: without encryption and proof.
        """
        self._coordinator = coordinator
        self._host = host
        self._dialer = dialer or Dialer(Role.WORKER)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._channel_generation = 0
        self._first_call: grpc.Future[Any] | None = None  # cancelled if nobody holds it
        self._store: CoordinatorStore | None = None
        self._group: Group | None = None
        self._aborts = 0
        self._abort_reason = ""

    def prepare(self) -> None:
        """Connects to the coordinator in the background and loads the native library: the first join is faster."""
        load_library()
        with self._lock:
            stub = cluster_pb2_grpc.RendezvousServiceStub(self._dialer.proving(self._connection()))
            # It will be refused, over a connection that stays. Whether there is one the first join will tell.
            self._first_call = stub.CheckValues.future(
                cluster_pb2.CheckValuesRequest(), timeout=10.0, wait_for_ready=True
            )

    @property
    def group(self) -> Group | None:
        """The group that this worker is in."""
        return self._group

    @property
    def aborts(self) -> int:
        """How often `abort` was called: whoever asks for a join that has to wait its turn notes it first."""
        with self._lock:
            return self._aborts

    def join(
        self,
        request: shard_worker_pb2.JoinGroupRequest,
        device: torch.device,
        *,
        aborts_seen: int | None = None,
    ) -> Group:
        """Meets the other members and forms the group. A group that stands is left first.

        Args:
            aborts_seen: `aborts` when the join was asked for: an abort since then ends it before it begins.
                None: it was asked for just now.

        Raises:
            CommunicationError: a member did not come in time, the attempt is over, or it was aborted.
        """
        self._discard()
        started_at = time.monotonic()
        attempt = Attempt(request.group_id, request.epoch, request.nonce)
        with self._lock:
            seen = self._aborts if aborts_seen is None else aborts_seen
            if self._aborts != seen:
                raise _join_error(request, f"aborted: {self._abort_reason}")
            store = CoordinatorStore(
                self._dialer.proving(self._connection()),
                attempt,
                deadline=started_at + request.join_timeout_s,
            )
            self._store = store
        if len(request.members) == 1:
            return self._enter(request, request.backend, SingleHandler(), SingleStepChannel(), started_at)
        try:
            former = GroupFormer(
                request, device, store, self._listening_host(request), reproducible=request.model.reproducible
            )
            backend, handler, channel = former.form()
        except CommunicationError as error:
            raise _join_error(request, error.reason) from error
        except (RendezvousError, RuntimeError, OSError) as error:
            raise _join_error(request, str(error)) from error
        store.formed(request.collective_timeout_s)
        return self._enter(request, backend, handler, channel, started_at)

    def abort(self, reason: str) -> None:
        """Ends the join or the group that this worker is in, out of any blocked call, and every join that was asked
        for before."""
        with self._lock:
            self._aborts += 1
            self._abort_reason = reason
            store, group = self._store, self._group
        if store is not None:
            store.cancel(reason)
        if group is not None:
            group.abort(reason)

    def leave(self, epoch: int) -> None:
        """Frees the group of this epoch; nothing if it is not the one that this worker is in."""
        if self._group is not None and self._group.epoch == epoch:
            self._discard()

    def close(self) -> None:
        """Leaves, and closes the connection to the coordinator."""
        self._discard()
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def _discard(self) -> None:
        with self._lock:
            group, self._group = self._group, None
            self._store = None
        if group is not None:
            group.close()

    def _enter(
        self,
        request: shard_worker_pb2.JoinGroupRequest,
        backend: shard_worker_pb2.Backend.ValueType,
        handler: CommunicationHandler,
        channel: StepChannel,
        started_at: float,
    ) -> Group:
        group = Group(
            group_id=request.group_id,
            epoch=request.epoch,
            rank=request.rank,
            world_size=len(request.members),
            backend=backend,
            handler=handler,
            step_channel=channel,
            duration_s=time.monotonic() - started_at,
        )
        with self._lock:
            unwanted = self._store is not None and self._store.cancelled
            self._group = None if unwanted else group
        if unwanted:  # the abort came when nothing was waiting any more
            group.close()
            raise _join_error(request, f"aborted: {self._abort_reason}")
        log.info(
            "group_joined",
            group=group.group_id,
            epoch=group.epoch,
            rank=group.rank,
            world_size=group.world_size,
            backend=handler.backend,
            seconds=round(group.duration_s, 4),
        )
        return group

    def _connection(self) -> grpc.Channel:
        """A channel that stays, unless the certificate that it shows has been renewed meanwhile."""
        generation = self._dialer.generation()
        if self._channel is not None and generation == self._channel_generation:
            return self._channel
        try:
            channel = self._dialer.sync(self._coordinator, tls=self._dialer.encrypts)
        except SettingsError as error:
            if self._channel is None:
                raise
            log.warning("certificate_not_taken", reason=str(error))
            return self._channel
        if self._channel is not None:
            self._channel.close()
        self._channel, self._channel_generation = channel, generation
        return channel

    def _listening_host(self, request: shard_worker_pb2.JoinGroupRequest) -> str:
        """Where this rank listens for the others: never on every interface."""
        return request.members[request.rank].host if self._host in _ANY_ADDRESS else self._host


def _join_error(request: shard_worker_pb2.JoinGroupRequest, reason: str) -> CommunicationError:
    return CommunicationError(rank=request.rank, peer=None, operation="join", sequence=0, reason=reason)
