"""Servers that listen, and callers that have what they need, or not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI, Request

from ryzanstein import secret_files
from ryzanstein.join_calls import Dialer, JoinGuard
from ryzanstein.join_proof import PROOF_KEY, JoinTokens, ProofVerifier, Role
from ryzanstein.tls import TlsError, TlsFiles
from ryzanstein.wire import SERVER_OPTIONS, StatusInterceptor
from ryzanstein_coordinator.access import http_caller
from ryzanstein_coordinator.api_keys import KeyRing
from ryzanstein_coordinator.guards import GrpcGuard, HttpGuard, RefusalLog, grpc_caller
from ryzanstein_coordinator.http_server import HttpServer, bind
from ryzanstein_coordinator.http_tls import TlsDoor
from ryzanstein_coordinator.openai import Edge, install_errors
from tests.certificates import MISSING, Authority, Pair

ALICE, OPERATOR = "alice-key-0123456789", "operator-key-0123456"
SERVICE = "ryzanstein.v1.InferenceService"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    path = tmp_path / "keys"
    path.write_text(f"{ALICE} alice\n{OPERATOR} operator operations\n")
    path.chmod(0o600)
    return KeyRing.from_file(path)


@asynccontextmanager
async def grpc_server(
    *guards: grpc.aio.ServerInterceptor,
    ring: KeyRing | None = None,
    service: str = SERVICE,
    tls: TlsFiles | None = None,
) -> AsyncIterator[str]:
    """Answers every method of a service with the caller's name; its address."""

    async def whoami(_request: bytes, context: Any) -> bytes:
        return grpc_caller(ring, context).name.encode()

    async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    handlers: dict[str, Any] = {
        "One": grpc.unary_unary_rpc_method_handler(whoami),
        "Many": grpc.stream_stream_rpc_method_handler(echo),
    }
    server = grpc.aio.server(
        interceptors=[*guards, StatusInterceptor(lambda *_: None)], options=SERVER_OPTIONS
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def call(
    channel: Any,
    method: str = f"/{SERVICE}/One",
    metadata: tuple[tuple[str, str], ...] = (),
    payload: bytes = b"",
) -> str:
    """The answer, or the name of the status and its text."""
    try:
        reply: bytes = await channel.unary_unary(method)(payload, timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return reply.decode()


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def test_grpc_lets_in_whose_key_has_the_role_and_knows_who_it_is(ring: KeyRing) -> None:
    refusals = RefusalLog()
    async with (
        grpc_server(GrpcGuard(ring, None, refusals), ring=ring) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, metadata=bearer(ALICE)) == "alice"
        assert (await call(channel)).startswith("UNAUTHENTICATED: this server wants an API key")
        assert (await call(channel, metadata=bearer("wrong-key-0123456789"))).startswith("UNAUTHENTICATED")
        assert (await call(channel, metadata=bearer(OPERATOR))).startswith(
            "PERMISSION_DENIED: the API key of op"
        )
        assert (await call(channel, metadata=bearer(ALICE) * 2)).startswith("UNAUTHENTICATED"), "two are none"
        assert (await call(channel, f"/{SERVICE}/None", bearer(ALICE))).startswith("UNIMPLEMENTED")
        assert (await call(channel, f"/{SERVICE}/None")).startswith("UNAUTHENTICATED"), (
            "strangers learn nothing"
        )
        stranger: Any = channel.stream_stream(f"/{SERVICE}/Many")(timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:  # before a message of it is read
            await stranger.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_members_prove_the_token_and_strangers_can_not() -> None:
    ours, theirs = JoinTokens(lambda: (b"our token",)), JoinTokens(lambda: (b"their token",))
    service = "ryzanstein.v1.ClusterService"
    method = f"/{service}/One"
    guard = GrpcGuard(None, ProofVerifier(ours, Role.WORKER), RefusalLog())
    async with grpc_server(guard, service=service) as address, grpc.aio.insecure_channel(address) as channel:
        member = Dialer(Role.WORKER, tokens=ours).proving(channel)
        for _ in range(3):  # each call has a proof of its own
            assert await call_proving(member, method) == ""
        assert (await call(channel, method)).startswith("UNAUTHENTICATED: only members")
        stranger = Dialer(Role.WORKER, tokens=theirs).proving(channel)
        assert (await call_proving(stranger, method)).startswith(
            "UNAUTHENTICATED: the join token is not this"
        )
        mirror = Dialer(Role.COORDINATOR, tokens=ours).proving(channel)
        assert (await call_proving(mirror, method)).startswith("UNAUTHENTICATED"), (
            "a proof of the other direction"
        )
        proof = ((PROOF_KEY, ours.prove(Role.WORKER, method, b"mine")),)
        assert await call(channel, method, proof, b"mine") == ""
        assert "used before" in await call(channel, method, proof, b"mine")
        for passed_on in (ours.prove(Role.WORKER, method, b"mine"), ours.prove(Role.WORKER, method)):
            changed = await call(channel, method, ((PROOF_KEY, passed_on),), b"the intruder's")
            assert changed.startswith("UNAUTHENTICATED: the message to")


async def call_proving(channel: Any, method: str) -> str:
    try:
        reply: bytes = await channel.unary_unary(method)(b"", timeout=5)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return reply.decode()


async def test_nobody_but_the_coordinator_calls_a_worker() -> None:
    tokens = JoinTokens(lambda: (b"our token",))
    service = "ryzanstein.v1.ShardWorkerService"
    guard = JoinGuard(ProofVerifier(tokens, Role.COORDINATOR))
    async with grpc_server(guard, service=service) as address, grpc.aio.insecure_channel(address) as channel:
        coordinator = Dialer(Role.COORDINATOR, tokens=tokens).proving(channel)
        stream = coordinator.stream_stream(f"/{service}/Many")(timeout=5)
        for number in range(3):  # one proof for the stream, whatever goes through it
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
        stream.cancel()
        another_worker = Dialer(Role.WORKER, tokens=tokens).proving(channel)
        assert (await call_proving(another_worker, f"/{service}/One")).startswith("UNAUTHENTICATED")
        assert (await call(channel, "/anything/else")).startswith("UNAUTHENTICATED")


async def test_headers_and_messages_beyond_the_bounds_are_refused(ring: KeyRing) -> None:
    async with (
        grpc_server(GrpcGuard(ring, None, RefusalLog()), ring=ring) as address,
        grpc.aio.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
        ) as channel,
    ):
        huge = (*bearer(ALICE), ("x", "y" * 40_000))
        assert (await call(channel, metadata=huge)).startswith("RESOURCE_EXHAUSTED")
        too_long = await call(channel, metadata=bearer(ALICE), payload=b"x" * (9 * 1024 * 1024))
        assert too_long.startswith("RESOURCE_EXHAUSTED")
        assert await call(channel, metadata=bearer(ALICE)) == "alice", "the connection goes on"


@asynccontextmanager
async def http_server(ring: KeyRing | None, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    app = FastAPI()
    install_errors(app)

    @app.get("/v1/whoami")
    @app.get("/cluster")
    @app.get("/livez")
    async def whoami(request: Request) -> str:
        return http_caller(request.scope).name

    listener = bind("127.0.0.1", 0, flag="--http-port")
    port: int = listener.getsockname()[1]
    server = HttpServer(Edge(HttpGuard(app, ring, RefusalLog())), listener, tls)
    serving = asyncio.create_task(server.run_until_stopped())
    try:
        yield port
    finally:
        server.stop()
        await serving


async def test_http_lets_in_whose_key_has_the_role(ring: KeyRing) -> None:
    async with (
        http_server(ring) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):

        async def get(path: str, *keys: str) -> httpx.Response:
            return await client.get(path, headers=[("authorization", f"Bearer {key}") for key in keys])

        assert (await get("/v1/whoami", ALICE)).json() == "alice"
        assert (await get("/cluster", OPERATOR)).json() == "operator"
        assert (await get("/livez")).json() == ""
        for path in ("/v1/whoami", "/cluster", "/nothing/here"):
            refused = await get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["x-request-id"]
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert (await get("/v1/whoami", ALICE, ALICE)).status_code == 401, "two are none"
        denied = await get("/cluster", ALICE)
        assert denied.status_code == 403
        assert "alice may do inference; /cluster needs one with the role operations" in denied.text
        assert ALICE not in denied.text


async def test_without_a_key_file_everybody_may() -> None:
    async with (
        http_server(None) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert (await client.get("/cluster")).json() == ""


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
class TestTls:
    """Both protocols, with certificates that are renewed while the server runs."""

    @pytest.fixture(autouse=True)
    def looks_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not once in a second."""
        monkeypatch.setattr(secret_files, "LOOK_S", 0.0)

    async def test_grpc_asks_for_a_certificate_and_takes_a_renewed_one(self, tmp_path: Path) -> None:
        ours, foreign = Authority(tmp_path / "ours"), Authority(tmp_path / "foreign")
        used = TestTls.copy(ours.sign("server"), tmp_path)
        me, stranger, late = ours.sign("me"), foreign.sign("stranger"), ours.sign("late", days=0)
        files = TlsFiles(cert_file=used.cert, key_file=used.key, client_ca_file=ours.cert)

        async def ask(ca: Path, mine: Pair | None) -> str:
            cert, key = (mine.cert, mine.key) if mine else (None, None)
            tls = TlsFiles(cert_file=cert, key_file=key, ca_file=ca)
            async with Dialer(Role.WORKER, tls=tls).aio(address, tls=True) as channel:
                return await call(channel)

        async with grpc_server(tls=files) as address:
            assert await ask(ours.cert, me) == ""
            assert "UNAVAILABLE" in await ask(ours.cert, None), "no certificate"
            assert "UNAVAILABLE" in await ask(ours.cert, stranger), "of another authority"
            assert "UNAVAILABLE" in await ask(ours.cert, late), "expired"
            assert "CERTIFICATE_VERIFY_FAILED" in await ask(foreign.cert, me), "the server is a stranger"
            async with grpc.aio.insecure_channel(address) as plain:
                assert "UNAVAILABLE" in await call(plain)
            renewed = foreign.sign("renewed")
            TestTls.copy(renewed, tmp_path)
            assert await ask(foreign.cert, me) == ""
            assert "CERTIFICATE_VERIFY_FAILED" in await ask(ours.cert, me)
            used.key.write_text("half a file")
            assert await ask(foreign.cert, me) == "", "what can't be read changes nothing"

    async def test_https_takes_a_renewed_certificate(self, tmp_path: Path) -> None:
        ours, foreign = Authority(tmp_path / "ours"), Authority(tmp_path / "foreign")
        used = TestTls.copy(ours.sign("server"), tmp_path)
        context = TlsFiles(cert_file=used.cert, key_file=used.key).http_context()

        async def ask(ca: Path) -> int:
            verify = ssl.create_default_context(cafile=str(ca))
            async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
                return (await client.get(f"https://127.0.0.1:{port}/livez")).status_code

        async with http_server(None, context) as port:
            assert await ask(ours.cert) == 200
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await ask(foreign.cert)
            async with httpx.AsyncClient(trust_env=False) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{port}/livez")
            TestTls.copy(foreign.sign("renewed"), tmp_path)
            assert await ask(foreign.cert) == 200

    async def test_a_client_that_does_not_speak_tls_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TlsDoor, "handshake_timeout_s", 1)
        monkeypatch.setattr(TlsDoor, "max_connections", 2)
        authority = Authority(tmp_path / "ca")
        pair = authority.sign("server")
        verify = ssl.create_default_context(cafile=str(authority.cert))
        async with (
            http_server(None, TlsFiles(cert_file=pair.cert, key_file=pair.key).http_context()) as port,
            httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=verify, trust_env=False) as client,
        ):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            with pytest.raises(httpx.TransportError):  # they hold all that may be
                await client.get("/livez")
            for reader, writer in silent:
                assert await asyncio.wait_for(reader.read(), 10) == b""
                writer.close()
                await writer.wait_closed()
            assert (await client.get("/livez")).status_code == 200

    def test_files_that_do_not_fit_are_named(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ca")
        one, two = authority.sign("one"), authority.sign("two")
        garbage = tmp_path / "garbage"
        garbage.write_text("no certificate")
        for files, said in (
            ({"cert_file": one.cert, "key_file": two.key}, "are not a certificate in PEM and its key"),
            ({"cert_file": garbage, "key_file": one.key}, "are not a certificate in PEM and its key"),
            ({"cert_file": tmp_path / "none", "key_file": one.key}, "can't read"),
            ({"cert_file": one.cert}, "--tls-cert-file needs --tls-key-file"),
            ({"client_ca_file": authority.cert}, "--tls-client-ca-file needs --tls-cert-file"),
            ({"ca_file": garbage}, "--tls-ca-file: .*garbage holds no certificates"),
        ):
            with pytest.raises(TlsError, match=said):
                TlsFiles(**files).check()

    @staticmethod
    def copy(pair: Pair, directory: Path) -> Pair:
        """Under the names that a server was given; each replaced in one step."""
        used = Pair(directory / "used.pem", directory / "used.key")
        for source, target in ((pair.cert, used.cert), (pair.key, used.key)):
            fresh = target.with_suffix(".new")
            fresh.write_bytes(source.read_bytes())
            fresh.chmod(0o600)
            fresh.replace(target)
        return used
