"""What protects a worker's port and its calls, made from its configuration."""

from __future__ import annotations

import grpc
import structlog

from ryzanstein.join_calls import Dialer, JoinGuard
from ryzanstein.join_proof import JoinTokens, ProofVerifier, Role
from ryzanstein.wire import SERVER_OPTIONS, StatusInterceptor

from .config import DistributedConfig

log = structlog.get_logger(__name__)


class WorkerSecurity:
    """Whoever drives a worker has its device: only the coordinator may call it, by the join token or a certificate."""

    def __init__(self, config: DistributedConfig) -> None:
        """
        Raises:
            SecretFileError, TlsError: a file can't be used.
        """
        self._tls = config.tls
        self._tls.check()
        tokens = None if config.join_token_file is None else JoinTokens.from_file(config.join_token_file)
        #: How this worker calls the coordinator.
        self.dialer = Dialer(Role.WORKER, tls=self._tls, tokens=tokens)
        self._guards = [] if tokens is None else [JoinGuard(ProofVerifier(tokens, Role.COORDINATOR))]
        if not self._guards and self._tls.client_ca_file is None:
            log.warning(
                "coordinator_not_authenticated",
                advice="whoever reaches this worker's port can drive it: give --join-token-file or "
                "--tls-client-ca-file",
            )

    def server(self) -> grpc.aio.Server:
        """The worker's own, without services and ports."""
        last = StatusInterceptor(lambda method, error: log.error("internal", method=method, exc_info=error))
        return grpc.aio.server(interceptors=[*self._guards, last], options=SERVER_OPTIONS)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Opens the port; its number.

        Raises:
            RuntimeError: the address can't be listened on.
        """
        if self._tls.serves:
            return int(server.add_secure_port(address, self._tls.server_credentials()))
        return int(server.add_insecure_port(address))
