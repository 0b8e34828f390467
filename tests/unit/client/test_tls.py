"""Both clients over an encrypted connection."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from ryzanstein_client import AsyncClient, Client, Disconnected

from .scripted_coordinator import ScriptedCoordinator, expected_tokens

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Key and self-signed certificate of 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(words.split(), check=True, capture_output=True)
    return key, cert


async def test_an_encrypted_coordinator_is_reached_with_its_certificate_and_not_without(
    certificate: tuple[Path, Path],
) -> None:
    key, cert = certificate
    coordinator = ScriptedCoordinator()
    coordinator.credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    await coordinator.start()
    try:
        async with AsyncClient(coordinator.address, tls_ca_file=cert) as client:
            answer = await client.generate("hello", max_tokens=4, seed=1)
        assert answer.token_ids == tuple(expected_tokens(1, 4))
        with Client(coordinator.address, tls_ca_file=cert) as plain:
            synchronous = await asyncio.to_thread(plain.generate, "hello", max_tokens=4, seed=1)
        assert synchronous.token_ids == answer.token_ids
        for tls in (False, True):  # unencrypted, and with the authorities of the system
            async with AsyncClient(coordinator.address, tls=tls, connect_timeout_s=0.2) as stranger:
                with pytest.raises(Disconnected):
                    await stranger.models()
    finally:
        await coordinator.close()
