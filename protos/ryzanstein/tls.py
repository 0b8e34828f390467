"""TLS of gRPC and HTTP, from PEM files that are read again when they change: a renewed certificate needs no restart.

The flags have the names that vLLM, etcd and others use, and mean the same for coordinator and shard workers:

    --tls-cert-file, --tls-key-file   what this program shows, as a server and as a client
    --tls-client-ca-file              whoever calls it over gRPC must show a certificate of these authorities
    --tls-ca-file                     the authorities of the servers that it calls; default: --tls-client-ca-file

TLS 1.2 is the oldest that is spoken. HTTP asks for no certificate: there, API keys say who calls.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .secret_files import Watched, read_secret
from .settings import SettingsError

if TYPE_CHECKING:  # `ryzanstein --help` reads the flags, and must not wait for gRPC
    import grpc


class TlsError(SettingsError):
    """The files can't be used; the message names the flag, the file and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of one program; None: not given. Raises TlsError for a combination that makes no sense."""

    #: With the intermediate certificates behind it.
    cert_file: Path | None = None
    #: Without a passphrase: nobody is there to type it.
    key_file: Path | None = None
    client_ca_file: Path | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            given, missing = ("cert", "key") if self.key_file is None else ("key", "cert")
            raise TlsError(f"--tls-{given}-file needs --tls-{missing}-file: give both")
        if self.client_ca_file is not None and self.cert_file is None:
            raise TlsError(
                "--tls-client-ca-file needs --tls-cert-file and --tls-key-file: certificates are shown over TLS only"
            )

    @property
    def serves(self) -> bool:
        """This program's servers speak TLS."""
        return self.cert_file is not None

    @property
    def server_ca_file(self) -> Path | None:
        """Who vouches for the servers that this program calls; None: it calls them without TLS."""
        return self.ca_file or self.client_ca_file

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that are given."""
        files = (self.cert_file, self.key_file, self.client_ca_file, self.ca_file)
        return tuple(file for file in files if file is not None)

    def check(self) -> None:
        """Reads everything once. Raises TlsError or SecretFileError."""
        self.key_pair()
        for file, flag in (
            (self.client_ca_file, "--tls-client-ca-file"),
            (self.ca_file, "--tls-ca-file"),
        ):
            if file is not None:
                read_authorities(file, flag)

    def key_pair(self) -> tuple[bytes, bytes] | None:
        """(key, certificate chain) in PEM; None if this program has none. Raises TlsError, SecretFileError."""
        if self.cert_file is None or self.key_file is None:
            return None
        return read_key_pair(self.cert_file, self.key_file)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For gRPC servers, grpc.aio's too. Only if `serves`; raises TlsError, SecretFileError."""
        import grpc

        watched = Watched(self._server_configuration, self.paths)
        last = initial = watched.get()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """gRPC asks before every handshake, on a thread of its own."""
            nonlocal last
            now = watched.get()
            if now is last:
                return None
            last = now
            return now

        return grpc.dynamic_ssl_server_credentials(
            initial, cast("Any", fetch), self.client_ca_file is not None
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel, with the files as they are now. Only with a `server_ca_file`; raises TlsError,
        SecretFileError."""
        import grpc

        assert self.server_ca_file is not None, "there is nobody to vouch for the server"
        key, chain = self.key_pair() or (None, None)
        return grpc.ssl_channel_credentials(
            read_authorities(self.server_ca_file, "--tls-ca-file"), key, chain
        )

    def http_context(self) -> ssl.SSLContext:
        """For the HTTP server. Only if `serves`; raises TlsError, SecretFileError."""
        watched = Watched(self._http_context, self.paths)

        def newest(
            connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
        ) -> None:
            connection.context = watched.get()

        # OpenSSL calls it in every handshake, whether or not the client names a server.
        context = self._http_context()
        context.sni_callback = newest
        return context

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        import grpc

        pair = self.key_pair()
        assert pair is not None, "a server without a certificate"
        roots = self.client_ca_file and read_authorities(self.client_ca_file, "--tls-client-ca-file")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots or None)

    def _http_context(self) -> ssl.SSLContext:
        assert self.cert_file is not None
        assert self.key_file is not None
        read_key_pair(self.cert_file, self.key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


def read_key_pair(cert_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    """(key, certificate chain) in PEM, of one another. Raises TlsError, SecretFileError."""
    key = read_secret(key_file, "--tls-key-file")
    try:
        chain = cert_file.read_bytes()
        # gRPC would only say "handshaker factory creation failed", and to its own log.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except ssl.SSLError as error:
        raise TlsError(
            f"--tls-cert-file, --tls-key-file: {cert_file} and {key_file} are not a certificate in PEM and its key: "
            f"{error.reason or error}"
        ) from None
    except _EncryptedError:
        raise TlsError(
            f"--tls-key-file: {key_file} is encrypted, and nobody is there to type its passphrase; store it without "
            "one: openssl pkey -in OLD -out NEW"
        ) from None
    except OSError as error:
        raise TlsError(f"--tls-cert-file: can't read {cert_file}: {error.strerror or error}") from None
    return key, chain


def read_authorities(file: Path, flag: str) -> bytes:
    """Certificates of authorities in PEM. Raises TlsError."""
    try:
        data = file.read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise TlsError(f"{flag}: {file} holds no certificates in PEM: {error.reason or error}") from None
    except OSError as error:
        raise TlsError(f"{flag}: can't read {file}: {error.strerror or error}") from None
    return data


class _EncryptedError(Exception):
    """The private key needs a passphrase."""


def _no_passphrase() -> str:
    raise _EncryptedError
