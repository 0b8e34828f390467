"""The worker's configuration: read once in `main`, validated, never changed."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from ryzanstein.processors import parse_processors
from ryzanstein.tls import TlsFiles

_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
_DEVICE = re.compile(r"(cpu|cuda:\d+)\Z")


class ConfigError(ValueError):
    """A setting that can't work; the message says which, why, and what to give instead."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedConfig:
    """What one shard worker needs to know before it meets its coordinator."""

    #: HOST:PORT of the coordinator's gRPC server.
    coordinator: str
    #: "cpu" or "cuda:N".
    device: str = "cpu"
    #: Stays the same over restarts of this worker, unique in the cluster.
    worker_id: str = ""
    #: Address that this worker's own gRPC server binds to, and under which the others reach it.
    host: str = "127.0.0.1"
    #: 0 picks a free one.
    port: int = 0
    #: This worker's own copy of the model. None: the coordinator's directory.
    model_dir: Path | None = None
    #: Threads of one step on a CPU.
    cpu_threads: int = 1
    #: The processors of the threads that compute on a CPU; empty: any.
    pinned_to: tuple[int, ...] = ()
    #: A leader without work lets all ranks prove that they answer this often.
    keep_alive_s: float = 0.1
    #: Most time that running streams get when this worker is told to stop and nobody takes its rank.
    drain_timeout_s: float = 30.0
    #: What the coordinator and its workers know, and nobody else. See `ryzanstein.join_proof`.
    join_token_file: Path | None = None
    tls: TlsFiles = field(default_factory=TlsFiles)
    #: Accepts a `host` that other machines reach although not everything is protected.
    insecure: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for the first setting that can't work."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"--coordinator: {self.coordinator!r} is not HOST:PORT, e.g. 127.0.0.1:50051")
        if not _DEVICE.match(self.device):
            raise ConfigError(f"--device: {self.device!r} is neither cpu nor cuda:N, e.g. cuda:0")
        if not _WORKER_ID.match(self.worker_id):
            raise ConfigError(
                f"--worker-id: {self.worker_id!r} must be 1 to 128 letters, digits or . _ : @ - "
                "and begin with a letter or digit"
            )
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port: {self.port} is not in 0..65535")
        if not 1 <= self.cpu_threads <= (os.cpu_count() or 1) * 4:
            raise ConfigError(
                f"--cpu-threads: {self.cpu_threads} on a machine with {os.cpu_count()} processors"
            )
        if not 0.005 <= self.keep_alive_s <= 5.0:
            raise ConfigError(f"keep_alive_s: {self.keep_alive_s} is not in 0.005..5")
        if not 0.0 <= self.drain_timeout_s <= 86400.0:
            raise ConfigError(f"--drain-timeout: {self.drain_timeout_s} is not in 0..86400 seconds")
        if self.model_dir is not None and not self.model_dir.is_dir():
            raise ConfigError(f"--model-dir: {self.model_dir} is not a directory")
        if not self.insecure and not is_loopback(self.host):
            self._check_protected()

    def _check_protected(self) -> None:
        missing = [] if self.tls.serves else ["--tls-cert-file and --tls-key-file"]
        if self.join_token_file is None and self.tls.client_ca_file is None:
            missing.append("--join-token-file or --tls-client-ca-file")
        if missing:
            raise ConfigError(
                f"--host: {self.host} is open to other machines; give {' and '.join(missing)}, "
                "or use 127.0.0.1, or add --insecure in a network that you trust"
            )


def read_pinning(text: str) -> tuple[int, ...]:
    """`--cpu-pinning` → the processors; none is (). Raises ConfigError."""
    if text == "none":
        return ()
    try:
        return parse_processors(text)
    except ValueError as error:
        raise ConfigError(f"--cpu-pinning: {error}; give processors, e.g. 0-15 or 0,2, or none") from None


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may stand for anything
        return False


def default_worker_id(device: str) -> str:
    """HOST:DEVICE: what tells workers of different machines and GPUs apart."""
    return f"{socket.gethostname()}:{device}"
