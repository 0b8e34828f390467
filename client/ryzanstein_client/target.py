"""Where the coordinator is and how to speak to it: what both clients need before they can call anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from .errors import InvalidRequest

DEFAULT_ADDRESS = "127.0.0.1:50051"

#: How long leaving a stream may take: telling the server, and seeing the end of a stream that is over.
LEAVE_TIMEOUT_S = 1.0

#: gRPC's own deadline lies a little behind the request's, so that the server's word arrives first.
DEADLINE_MARGIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """An address with its credentials.

    `tls` without `ca_file` trusts the system's certificate authorities; a `ca_file` (PEM) implies `tls`.
    Raises InvalidRequest for an address without a port or a file that can't be read.
    """

    address: str = DEFAULT_ADDRESS
    api_key: str | None = None
    tls: bool = False
    ca_file: str | Path | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidRequest(f"the coordinator's address is {self.address!r}; it must be HOST:PORT")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a secure channel needs; None for a plain one."""
        if self.ca_file is None:
            return grpc.ssl_channel_credentials() if self.tls else None
        try:
            return grpc.ssl_channel_credentials(Path(self.ca_file).read_bytes())
        except OSError as error:
            raise InvalidRequest(f"can't read the CA file {self.ca_file}: {error.strerror}") from error

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
