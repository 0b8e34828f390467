"""What the control plane asks of workers: an action becomes a call, its answer becomes an event."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from ryzanstein.model_plan import encode_model_config
from ryzanstein.v1 import shard_worker_pb2

from . import actions, events
from .config import OrchestratorConfig
from .events import Event
from .group_record import EngineBounds, Member
from .served_model import ServedModel
from .worker_record import WorkerRecord
from .workers import CallError, Workers

_BACKENDS = {
    "shared_memory": shard_worker_pb2.BACKEND_SHARED_MEMORY,
    "gloo": shard_worker_pb2.BACKEND_GLOO,
    "nccl": shard_worker_pb2.BACKEND_NCCL,
}
_BACKEND_NAMES = {number: name for name, number in _BACKENDS.items()}


class Rendezvous(Protocol):
    """Where the ranks of one attempt find each other."""

    def open(self, group_id: str, epoch: int, nonce: str) -> None:
        """From now on only this attempt of the group is served."""

    def close(self, group_id: str) -> None:
        """No attempt of this group is served; whoever waits is told so."""


class NoRendezvous:
    """For workers that find each other by themselves."""

    def open(self, group_id: str, epoch: int, nonce: str) -> None: ...
    def close(self, group_id: str) -> None: ...


class WorkerCalls:
    """Starts calls and tells what came of them."""

    def __init__(
        self,
        config: OrchestratorConfig,
        model: ServedModel,
        dtype: str,
        *,
        workers: Workers,
        rendezvous: Rendezvous,
        emit: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._model = model
        self._dtype = dtype
        self._workers = workers
        self._rendezvous = rendezvous
        self._emit = emit
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Calls run in this task group; a defect in one ends it."""
        self._tasks = tasks

    def cancel(self) -> None:
        """Gives up all calls; no event comes of them any more."""
        for task in self._running:
            task.cancel()

    def load(self, action: actions.LoadShard) -> None:
        """A call for another shard of this worker may be under way: its answer will mean nothing."""
        self._start(self._load(action), f"load-{action.worker_id}")

    def join(self, action: actions.JoinGroup, workers: Mapping[str, WorkerRecord]) -> None:
        """Calls all members at once. The nonce keeps what an earlier attempt left behind apart."""
        nonce = secrets.token_hex(8)
        self._rendezvous.open(action.group_id, action.epoch, nonce)
        members = [_member(member, workers[member.worker_id]) for member in action.members]
        request = shard_worker_pb2.JoinGroupRequest(
            epoch=action.epoch,
            group_id=action.group_id,
            nonce=nonce,
            members=members,
            backend=_BACKENDS[action.backend],
            model=self._spec(action.limits.max_model_len),
            limits=limits_message(action.limits),
            collective_timeout_s=max(self._config.collective_timeout_s, action.limits.slowest_step_s),
            join_timeout_s=self._config.join_timeout_s,
        )
        for member in action.members:
            self._start(self._join(request, member), f"join-{action.group_id}-{member.rank}")

    def leave(self, action: actions.LeaveEpoch) -> None:
        """Whoever still waits for a peer in this attempt is told so; Abort ends the call itself."""
        self._rendezvous.close(action.group_id)

    def abort(self, action: actions.AbortWorker) -> None:
        self._start(self._abort(action), f"abort-{action.worker_id}")

    def drain(self, action: actions.DrainProcess) -> None:
        self._start(self._drain(action), f"drain-{action.worker_id}")

    async def drain_all(self, workers: Sequence[WorkerRecord], epoch: int, reason: str) -> None:
        """Asks all workers to end, and waits until each has answered or its deadline has passed."""
        drains = [
            actions.DrainProcess(max(epoch, w.seen_epoch), w.worker_id, w.incarnation, reason)
            for w in workers
        ]
        await asyncio.gather(*(self._drain(drain) for drain in drains))

    async def _load(self, action: actions.LoadShard) -> None:
        identity = (action.worker_id, action.incarnation, action.key)
        request = shard_worker_pb2.LoadShardRequest(
            epoch=action.epoch,
            group_id=action.group_id,
            model=self._spec(action.key.max_model_len),
            rank=action.key.rank,
            tensor_parallel_size=action.key.size,
            limits=limits_message(action.limits),
            beside=action.beside,
        )
        connection = self._workers.of(action.worker_id, action.incarnation)
        if connection is None:
            return
        try:
            reply = await connection.load_shard(request, self._config.load_timeout_s)
        except CallError as error:
            refused = events.ShardRefused(*identity, error.never_works, str(error), error.own_fault)
            self._emit(refused)
        else:
            self._emit(events.ShardLoaded(*identity, reply.loaded, reply.has_files, reply.weights_bytes))

    async def _join(self, request: shard_worker_pb2.JoinGroupRequest, member: Member) -> None:
        connection = self._workers.of(member.worker_id, member.incarnation)
        if connection is None:
            return  # its process is gone: that is an event of its own
        own = shard_worker_pb2.JoinGroupRequest()
        own.CopyFrom(request)
        own.rank = member.rank
        identity = (request.group_id, request.epoch, member.worker_id)
        try:
            # A little longer than the workers' own limit, so that their reason comes first.
            reply = await connection.join_group(own, self._config.join_timeout_s + 1.0)
        except CallError as error:
            self._emit(events.JoinFailed(*identity, error.own_fault, str(error)))
        else:
            backend = _BACKEND_NAMES.get(reply.backend) or _BACKEND_NAMES[request.backend]
            self._emit(events.Joined(*identity, backend))

    async def _abort(self, action: actions.AbortWorker) -> None:
        connection = self._workers.of(action.worker_id, action.incarnation)
        if connection is None:
            return
        identity = (action.worker_id, action.incarnation, action.epoch)
        request = shard_worker_pb2.AbortRequest(
            epoch=action.epoch, group_id=action.group_id, reason=action.reason
        )
        try:
            await connection.abort(request, self._config.fence_timeout_s)
        except CallError as error:
            self._emit(events.FenceFailed(*identity, str(error)))
        else:
            self._emit(events.Fenced(*identity))

    async def _drain(self, action: actions.DrainProcess) -> None:
        connection = self._workers.of(action.worker_id, action.incarnation)
        if connection is None:
            return
        request = shard_worker_pb2.DrainRequest(epoch=action.epoch, reason=action.reason)
        try:
            await connection.drain(request)
        except CallError:
            self._emit(events.DrainFailed(action.worker_id, action.incarnation))

    def _spec(self, max_model_len: int) -> shard_worker_pb2.ModelSpec:
        return shard_worker_pb2.ModelSpec(
            path=self._model.path,
            fingerprint=self._model.fingerprint,
            dtype=self._dtype,
            max_model_len=max_model_len,
            name=self._model.name,
            config_json=encode_model_config(self._model.config),
            reproducible=self._config.reproducible,
            quantization=self._config.quantization,
        )

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        assert self._tasks is not None, "the orchestrator was not started"
        task = self._tasks.create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def limits_message(limits: EngineBounds) -> shard_worker_pb2.EngineLimits:
    """As workers and router get them."""
    return shard_worker_pb2.EngineLimits(
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_batched_tokens=limits.max_batched_tokens,
        memory_bytes=limits.memory_bytes,
        prefix_caching=limits.prefix_caching,
        max_decode_slowdown=limits.max_decode_slowdown,
        graph_sizes=limits.graph_sizes,
        gpu_attention=limits.gpu_attention,
    )


def _member(member: Member, worker: WorkerRecord) -> shard_worker_pb2.GroupMember:
    return shard_worker_pb2.GroupMember(
        rank=member.rank,
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        host=worker.host,
        host_id=worker.host_id,
        pid=worker.pid,
        address=worker.address,
        device=worker.device.name,
        loaded=worker.shard is not None and worker.shard.loaded,
        has_files=worker.shard is not None and worker.shard.has_files,
    )
