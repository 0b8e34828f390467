"""Where a worker may listen, and with what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ryzanstein.tls import TlsFiles
from ryzanstein_shard_worker.config import ConfigError, DistributedConfig

PAIR = {"cert_file": Path("w.pem"), "key_file": Path("w.key")}


def config(host: str, *, token: bool = False, tls: TlsFiles | None = None, insecure: bool = False) -> None:
    DistributedConfig(
        coordinator="127.0.0.1:50051",
        worker_id="w",
        host=host,
        join_token_file=Path("token") if token else None,
        tls=tls or TlsFiles(),
        insecure=insecure,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
def test_on_an_address_of_this_machine_alone_nothing_is_needed(host: str) -> None:
    config(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.2", "::", "127.example.org", "gpu1"])
def test_elsewhere_it_needs_a_certificate_and_to_know_who_calls(host: str) -> None:
    with pytest.raises(
        ConfigError, match="--tls-cert-file and --tls-key-file and --join-token-file or --tls-client"
    ):
        config(host)
    with pytest.raises(ConfigError, match="give --tls-cert-file and --tls-key-file, or"):
        config(host, token=True)
    with pytest.raises(ConfigError, match="give --join-token-file or --tls-client-ca-file, or"):
        config(host, tls=TlsFiles(**PAIR))
    config(host, token=True, tls=TlsFiles(**PAIR))
    config(host, tls=TlsFiles(**PAIR, client_ca_file=Path("ca.pem")))
    config(host, insecure=True)
