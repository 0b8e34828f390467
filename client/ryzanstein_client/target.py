"""Where the coordinator is and how to speak to it: what both clients need before they can call anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ryzanstein.secret_files import SecretFileError, read_secret, secret_lines
from ryzanstein.tls import TlsError, TlsFiles, read_authorities

from .errors import InvalidRequest

DEFAULT_ADDRESS = "127.0.0.1:50051"

#: How long leaving a stream may take: telling the server, and seeing the end of a stream that is over.
LEAVE_TIMEOUT_S = 1.0

#: gRPC's own deadline lies a little behind the request's, so that the server's word arrives first.
DEADLINE_MARGIN_S = 0.5


#: Environment variable with the key of whoever gives none.
API_KEY_VARIABLE = "RYZANSTEIN_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address with its credentials.

    `tls` without `tls_ca_file` trusts the system's certificate authorities; any file (PEM) implies `tls`. The key is
    `api_key`, else the first one in `api_key_file`, else that of the environment.
    Raises InvalidRequest for an address without a port, a file that can't be used, or a key that can't be sent.
    """

    address: str = DEFAULT_ADDRESS
    api_key: str | None = field(default=None, repr=False)
    api_key_file: str | Path | None = None
    tls: bool = False
    tls_ca_file: str | Path | None = None
    tls_cert_file: str | Path | None = None
    tls_key_file: str | Path | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidRequest(f"the coordinator's address is {self.address!r}; it must be HOST:PORT")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a secure channel needs; None for a plain one."""
        if not (self.tls or self.tls_ca_file or self.tls_cert_file or self.tls_key_file):
            return None
        try:
            files = TlsFiles(cert_file=_path(self.tls_cert_file), key_file=_path(self.tls_key_file))
            key, chain = files.key_pair() or (None, None)
            ca_file = _path(self.tls_ca_file)
            roots = None if ca_file is None else read_authorities(ca_file, "--tls-ca-file")
        except (TlsError, SecretFileError) as error:
            raise InvalidRequest(str(error)) from None
        return grpc.ssl_channel_credentials(roots, key, chain)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with every call."""
        key = self._key()
        if not key:
            return ()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InvalidRequest(
                "the API key holds characters that can't be sent; it must be ASCII without blanks"
            )
        return (("authorization", f"Bearer {key}"),)

    def _key(self) -> str:
        if self.api_key is not None:
            return self.api_key
        if self.api_key_file is None:
            return os.environ.get(API_KEY_VARIABLE, "").strip()
        path, flag = Path(self.api_key_file), "--api-key-file"
        try:
            lines = secret_lines(read_secret(path, flag), path, flag)
        except SecretFileError as error:
            raise InvalidRequest(str(error)) from None
        if not lines:
            raise InvalidRequest(f"{flag}: {path} holds no key")
        return lines[0][1].split()[0]  # a server's file has names and roles behind its keys


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)
