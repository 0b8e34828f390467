"""Takes workers in, one by one: what `registration` decides, with what it needs to know of those before."""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc
import structlog

from ryzanstein.v1 import cluster_pb2
from ryzanstein.wire import StatusError

from .config import OrchestratorConfig
from .registration import examine
from .state import ClusterState
from .worker_record import WorkerRecord

log = structlog.get_logger(__name__)


class Registrar:
    """Who held the ranks before this coordinator is given a lease to come back, from the first worker that comes on."""

    def __init__(self, config: OrchestratorConfig, computing: str) -> None:
        """`computing`: how those ranks computed, as `WorkerRecord.computing` says it; empty: not known."""
        self._config = config
        self._computing = computing
        self._members_by_s = math.inf
        #: Incarnations that were asked to wait for them: they ask several times a second.
        self._postponed: set[str] = set()

    def take_in(
        self,
        now_s: float,
        state: ClusterState,
        request: cluster_pb2.RegisterRequest,
        connect: Callable[[WorkerRecord], None],
    ) -> WorkerRecord:
        """Its record, once `connect` has taken its address.

        Raises:
            StatusError: it can't be taken; see `registration.examine`.
        """
        self._members_by_s = min(self._members_by_s, now_s + self._config.lease_ttl_s)
        before = self._computing if now_s < self._members_by_s else ""
        try:
            worker = examine(now_s, state, request, equal_bits=self._config.reproducible, before=before)
            connect(worker)
        except StatusError as error:
            if request.incarnation not in self._postponed:
                log.warning(
                    "worker_refused", worker=request.worker_id, host=request.host, reason=error.message
                )
            if error.code is grpc.StatusCode.UNAVAILABLE:
                self._postponed.add(request.incarnation)
            raise
        self._postponed.discard(request.incarnation)
        return worker
