"""What protects the coordinator's ports, made from its configuration: who may connect, who may call, who may join."""

from __future__ import annotations

import resource

import grpc
import structlog
from grpc.aio import Server

from ryzanstein.join_calls import Dialer, JoinGuard
from ryzanstein.join_proof import JoinTokens, ProofVerifier, Role
from ryzanstein.wire import StatusError

from .access import Caller
from .api_keys import KeyRing
from .config import ConfigError, OrchestratorConfig, is_loopback
from .guards import GrpcGuard, RefusalLog, grpc_caller
from .worker_record import WorkerRecord

log = structlog.get_logger(__name__)


#: A connection needs one, and a shell gives a process 1024.
_MOST_OPEN_FILES = 65536


def allow_many_connections() -> None:
    """Raises this process's limit of open files as far as it may: it is meant for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Security:
    """Reads all files once, so that what is wrong with one is said before anything listens."""

    def __init__(self, config: OrchestratorConfig) -> None:
        """
        Raises:
            SecretFileError, TlsError: a file can't be used.
            ConfigError: strangers could join.
        """
        self.tls = config.tls
        self.tls.check()
        self.keys = None if config.api_key_file is None else KeyRing.from_file(config.api_key_file)
        self.refusals = RefusalLog()
        tokens = None if config.join_token_file is None else JoinTokens.from_file(config.join_token_file)
        self._members = None if tokens is None else ProofVerifier(tokens, Role.WORKER)
        self._dialer = Dialer(Role.COORDINATOR, tls=self.tls, tokens=tokens)
        self._check_joining(config)

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """The first one of the server that everybody reaches."""
        return GrpcGuard(self.keys, self._members, self.refusals)

    def member_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """The first ones of a server for members only."""
        return [] if self._members is None else [JoinGuard(self._members)]

    def listen(self, server: Server, address: str) -> int:
        """Opens a gRPC server's port, with TLS if there is a certificate; its number.

        Raises:
            RuntimeError: the address can't be listened on.
        """
        if self.tls.serves:
            return int(server.add_secure_port(address, self.tls.server_credentials()))
        return int(server.add_insecure_port(address))

    def owner_of(self, context: grpc.aio.ServicerContext[object, object]) -> str:
        """Whose key a gRPC call carries."""
        caller: Caller = grpc_caller(self.keys, context)
        return caller.name

    def connect(self, worker: WorkerRecord) -> grpc.aio.Channel:
        """A channel to a worker.

        Raises:
            StatusError: FAILED_PRECONDITION, the worker's certificate can't be checked.
        """
        if worker.tls and not self._dialer.encrypts:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{worker.worker_id} has a certificate, and this coordinator has no authority to check it with: start "
                "it with --tls-client-ca-file or --tls-ca-file",
            )
        return self._dialer.aio(worker.address, tls=worker.tls)

    def stub_channel(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """What a stub of a worker takes: its calls prove that they are the coordinator's."""
        proving: grpc.aio.Channel = self._dialer.proving(channel)
        return proving

    def generation(self) -> int:
        """Grows when a certificate was renewed: channels that were made before would show the old one."""
        return self._dialer.generation()

    def _check_joining(self, config: OrchestratorConfig) -> None:
        if config.member_port is not None and self._members is None:
            raise ConfigError(
                "--member-port: needs --join-token-file, because nothing else says who calls there"
            )
        if self._members is not None or self.tls.client_ca_file is not None:
            return
        if not (is_loopback(config.host) or config.insecure):
            raise ConfigError(
                f"--host: on {config.host} strangers could join as workers; give --join-token-file (the same on all "
                "hosts) or --tls-client-ca-file, or add --insecure in a network that you trust"
            )
        log.warning(
            "workers_not_authenticated",
            advice="whoever reaches the gRPC port can join as a worker: give --join-token-file or --tls-client-ca-file",
        )
