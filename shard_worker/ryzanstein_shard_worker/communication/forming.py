"""Which backend a group uses, and how its ranks come to agree on it."""

from __future__ import annotations

import structlog
import torch

from ryzanstein.v1 import shard_worker_pb2

from .gloo import GlooHandler
from .gloo_group import form_gloo_group
from .handler import CommunicationHandler
from .nccl_group import form_nccl_group, why_no_nccl
from .rendezvous import CoordinatorStore
from .segment import SegmentError, share_segment
from .shared_memory import SharedGroup, SharedMemoryHandler, SharedMemoryStepChannel
from .step_channel import StepChannel
from .tcp_step_channel import connect_step_channel

log = structlog.get_logger(__name__)

Formed = tuple[shard_worker_pb2.Backend.ValueType, CommunicationHandler, StepChannel]


class GroupFormer:
    """One attempt of one rank. What the ranks use is decided from what all of them know, so they all agree."""

    def __init__(
        self,
        request: shard_worker_pb2.JoinGroupRequest,
        device: torch.device,
        store: CoordinatorStore,
        host: str,
        *,
        reproducible: bool,
    ) -> None:
        self._request = request
        self._device = device
        self._store = store
        self._host = host
        self._reproducible = reproducible
        self._rank = request.rank
        self._world_size = len(request.members)
        self._one_host = len({member.host_id for member in request.members}) == 1
        self._segment_failed = False

    def form(self) -> Formed:
        """The backend that was asked for if all ranks can have it, else gloo."""
        wanted = self._request.backend
        if wanted == shard_worker_pb2.BACKEND_NCCL and self._all_have_nccl():
            return self._form_nccl()
        if wanted in (shard_worker_pb2.BACKEND_SHARED_MEMORY, shard_worker_pb2.BACKEND_UNSPECIFIED):
            shared = self._share_memory() if self._one_host and self._all_on_cpu() else None
            if shared is not None:
                return (
                    shard_worker_pb2.BACKEND_SHARED_MEMORY,
                    SharedMemoryHandler(shared),
                    SharedMemoryStepChannel(shared),
                )
        return self._form_gloo()

    def _form_nccl(self) -> Formed:
        channel = self._step_channel()
        try:
            handler = form_nccl_group(
                self._store,
                rank=self._rank,
                world_size=self._world_size,
                device=self._device,
                timeout_s=self._request.collective_timeout_s,
                reproducible=self._reproducible,
                join_timeout_s=self._store.remaining_s(),
                cancelled=lambda: self._store.cancelled,
            )
        except BaseException:
            channel.close()
            raise
        return shard_worker_pb2.BACKEND_NCCL, handler, channel

    def _form_gloo(self) -> Formed:
        channel = self._step_channel()
        try:
            group = form_gloo_group(
                self._store,
                prefix="gloo",
                rank=self._rank,
                world_size=self._world_size,
                host=self._host,
                timeout_s=self._store.remaining_s(),
                cancelled=lambda: self._store.cancelled,
            )
        except BaseException:
            channel.close()
            raise
        handler = GlooHandler(group, timeout_s=self._request.collective_timeout_s)
        return shard_worker_pb2.BACKEND_GLOO, handler, channel

    def _step_channel(self) -> StepChannel:
        """In shared memory where all ranks are on one host, else over TCP: never over the tensors' way."""
        if self._one_host and not self._segment_failed:
            shared = self._share_memory()
            if shared is not None:
                return SharedMemoryStepChannel(shared)
        return connect_step_channel(
            self._store,
            rank=self._rank,
            world_size=self._world_size,
            host=self._host,
            secret=self._request.nonce,
            join_timeout_s=self._store.remaining_s(),
            timeout_s=self._request.collective_timeout_s,
            cancelled=lambda: self._store.cancelled,
        )

    def _share_memory(self) -> SharedGroup | None:
        timeout_s = self._request.collective_timeout_s
        try:
            segment = share_segment(
                self._store,
                rank=self._rank,
                world_size=self._world_size,
                name=f"ryzanstein-{self._request.epoch}-{self._request.nonce}".replace("/", "-"),
                timeout_s=timeout_s,
            )
        except SegmentError as error:
            self._segment_failed = True
            log.warning("no_shared_memory", reason=str(error), epoch=self._request.epoch, rank=self._rank)
            return None
        return SharedGroup(segment, rank=self._rank, world_size=self._world_size, timeout_s=timeout_s)

    def _all_on_cpu(self) -> bool:
        return all(member.device.startswith("cpu") for member in self._request.members)

    def _all_have_nccl(self) -> bool:
        """Every rank publishes whether it can, and reads what all can."""
        self._store.set(f"nccl_refusal/{self._rank}", why_no_nccl())
        refusals = self._store.get_all([f"nccl_refusal/{rank}" for rank in range(self._world_size)])
        for rank, refusal in enumerate(refusals):
            if refusal:
                log.warning("no_nccl", reason=f"rank {rank}: {refusal.decode()}", epoch=self._request.epoch)
                return False
        return True
