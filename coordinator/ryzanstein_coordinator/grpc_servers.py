"""The coordinator's gRPC servers: one for everybody, and under `serve` one for its own workers."""

from __future__ import annotations

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ryzanstein.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from ryzanstein.wire import SERVER_OPTIONS, StatusInterceptor

from .cluster_service import ClusterServicer
from .config import OrchestratorConfig
from .health_service import HealthServicer
from .http_server import ListenError, address, bind
from .operations_service import OperationsServicer
from .orchestrator import MultiGPUOrchestrator
from .rendezvous import RendezvousServicer, RendezvousStore
from .security import Security
from .service import InferenceServicer

log = structlog.get_logger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_OTHERS = (
    cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
    cluster_pb2.DESCRIPTOR.services_by_name["RendezvousService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name,
)

#: Where the workers of `serve` register: nothing of it leaves the machine.
_MEMBER_HOST = "127.0.0.1"


class GrpcServers:
    """Listening when constructed, serving when started."""

    def __init__(
        self,
        config: OrchestratorConfig,
        security: Security,
        orchestrator: MultiGPUOrchestrator,
        rendezvous: RendezvousStore,
        inference: InferenceServicer,
    ) -> None:
        """
        Raises:
            ListenError: a port is taken, or the address is not one of this machine's.
            SecretFileError, TlsError: a file can't be used.
        """
        public = _server([security.interceptor()])
        _add_member_services(public, orchestrator, rendezvous)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, public)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsServicer(orchestrator), public)
        health_pb2_grpc.add_HealthServicer_to_server(
            HealthServicer(orchestrator.readiness, inference=_INFERENCE, others=_OTHERS), public
        )
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((_INFERENCE, *_OTHERS, health, reflection.SERVICE_NAME), public)
        self._servers = [public]
        self.port = _listen(public, config.host, config.grpc_port, "--grpc-port", security)
        #: Where workers of this machine register without TLS; None: with all others.
        self.member_address: str | None = None
        if config.member_port is not None:
            members = _server(security.member_interceptors())
            _add_member_services(members, orchestrator, rendezvous)
            port = _listen(members, _MEMBER_HOST, config.member_port, "--member-port", None)
            self.member_address = address(_MEMBER_HOST, port)
            self._servers.append(members)

    async def start(self) -> None:
        """Begins to serve."""
        for server in self._servers:
            await server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and ends those that run after `grace_s`."""
        for server in self._servers:
            await server.stop(grace_s)


def _server(guards: list[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    last = StatusInterceptor(lambda method, error: log.error("internal", method=method, exc_info=error))
    return grpc.aio.server(interceptors=[*guards, last], options=SERVER_OPTIONS)


def _add_member_services(
    server: grpc.aio.Server, orchestrator: MultiGPUOrchestrator, rendezvous: RendezvousStore
) -> None:
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(orchestrator), server)
    cluster_pb2_grpc.add_RendezvousServiceServicer_to_server(RendezvousServicer(rendezvous), server)


def _listen(server: grpc.aio.Server, host: str, port: int, flag: str, security: Security | None) -> int:
    """→ the port. Without `security` nothing is encrypted."""
    # gRPC writes its own lines to standard error when it can't bind: a taken port is found before it tries.
    bind(host, port, flag=flag).close()
    where = address(host, port)
    try:
        return server.add_insecure_port(where) if security is None else security.listen(server, where)
    except RuntimeError:
        raise ListenError(
            f"can't listen on {where}: it is in use or not of this machine; choose another {flag}"
        ) from None
