"""A cluster with mutual TLS, API keys and a join token: its own get on, whatever dies; every intruder is refused."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from ryzanstein.join_calls import Dialer
from ryzanstein.join_proof import PROOF_KEY, JoinTokens, Role, new_token
from ryzanstein.tls import TlsFiles
from ryzanstein.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    shard_worker_pb2,
    shard_worker_pb2_grpc,
)
from ryzanstein_client import AsyncClient, Client, Disconnected, NotFound, PermissionDenied, Unauthenticated
from tests.certificates import MISSING, Authority, Pair

from .harness import BUNDLED_MODEL, Cluster, Program

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

REGISTER = "/ryzanstein.v1.ClusterService/Register"


@dataclass(frozen=True, slots=True)
class Scene:
    """The cluster, its secrets, and what intruders have."""

    cluster: Cluster
    #: A worker that `serve` did not start: it came over the network's way, with a certificate of its own.
    guest: Program
    alice: str
    operator: str
    token_file: Path
    ca: Path
    me: Pair
    foreign: Pair
    expired: Pair
    directory: Path

    @property
    def secrets(self) -> list[str]:
        keys = [pair.key.read_text().splitlines()[1] for pair in (self.me, self.foreign)]
        return [self.alice, self.operator, self.token_file.read_text().strip(), *keys]

    def client(self, key: str, pair: Pair | None = None, *, patience_s: float = 0.0) -> Client:
        shown = pair or self.me
        return Client(
            self.cluster.grpc,
            api_key=key,
            tls_ca_file=self.ca,
            tls_cert_file=shown.cert,
            tls_key_file=shown.key,
            connect_timeout_s=patience_s,
        )

    def dialer(self, role: Role, token_file: Path | None = None) -> Dialer:
        """Of somebody with a good certificate."""
        tls = TlsFiles(cert_file=self.me.cert, key_file=self.me.key, ca_file=self.ca)
        tokens = None if token_file is None else JoinTokens.from_file(token_file)
        return Dialer(role, tls=tls, tokens=tokens)

    def http(self, key: str = "") -> httpx.Client:
        verify = ssl.create_default_context(cafile=str(self.ca))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.cluster.http, headers=headers, verify=verify, trust_env=False, timeout=20
        )

    def snapshot(self) -> dict[str, Any]:
        with self.http(self.operator) as http:
            loaded: dict[str, Any] = http.get("/cluster").raise_for_status().json()
        return loaded

    async def wait_for_standby(self) -> None:
        async with asyncio.timeout(30):
            while not any(w["id"] == "guest" and w["state"] == "standby" for w in self.snapshot()["workers"]):
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("secured")
    ours, theirs = Authority(directory / "ours"), Authority(directory / "theirs")
    server, guest, me = ours.sign("coordinator"), ours.sign("guest"), ours.sign("me")
    alice, operator = secrets.token_hex(16), secrets.token_hex(16)
    keys, token = directory / "keys", directory / "token"
    keys.write_text(f"{alice} alice\n{operator} operator operations\n")
    token.write_bytes(new_token())
    for file in (keys, token):
        file.chmod(0o600)
    protected = ["--join-token-file", str(token), "--tls-client-ca-file", str(ours.cert)]
    with ExitStack() as running:
        cluster = running.enter_context(
            Cluster(
                directory / "state", BUNDLED_MODEL, *protected, "--api-key-file", str(keys),
                "--tls-cert-file", str(server.cert), "--tls-key-file", str(server.key),
            )
        ).ready()  # fmt: skip
        worker = running.enter_context(
            Program(
                "shard-worker", "--coordinator", cluster.grpc, "--worker-id", "guest", "--device", "cpu",
                "--cpu-threads", "1", *protected,
                "--tls-cert-file", str(guest.cert), "--tls-key-file", str(guest.key),
                module="ryzanstein_shard_worker",
            )
        )  # fmt: skip
        yield Scene(
            cluster=cluster,
            guest=worker,
            alice=alice,
            operator=operator,
            token_file=token,
            ca=ours.cert,
            me=me,
            foreign=theirs.sign("foreign"),
            expired=ours.sign("expired", days=0),
            directory=directory,
        )


def status_of(call: Any) -> tuple[str, str]:
    """How a call was refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code().name, refused.value.details() or ""


def listening(pid: int) -> str:
    """Where a worker's own server is."""
    addresses = [
        c.laddr for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    assert {address.ip.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}, "open to others"
    (address,) = addresses
    return f"127.0.0.1:{address.port}"


async def test_a_stream_outlives_the_leader_and_the_coordinator(scene: Scene) -> None:
    """The guest takes rank 0: its shard, the group and the steps come over its own TLS port."""
    await asyncio.to_thread(scene.guest.wait_for_log, "registered")
    await scene.wait_for_standby()
    options: dict[str, Any] = {"max_tokens": 250, "seed": 3, "temperature": 1.0, "ignore_eos": True}
    async with AsyncClient(
        scene.cluster.grpc, api_key=scene.alice, tls_ca_file=scene.ca, tls_cert_file=scene.me.cert,
        tls_key_file=scene.me.key,
    ) as client:  # fmt: skip
        expected = (await client.generate("Q: ", **options)).token_ids
        leader = next(w for w in scene.snapshot()["workers"] if w["rank"] == 0)
        coordinator = next(p for p in scene.cluster.children() if "coordinator" in p.cmdline())
        tokens: list[int] = []
        victims = [psutil.Process(leader["pid"]), coordinator]
        async for chunk in client.stream("Q: ", **options):
            tokens += chunk.token_ids
            if victims and len(tokens) > 60 * (3 - len(victims)):
                victims.pop(0).kill()
        assert not victims
        assert tuple(tokens) == tuple(expected)
    placed = {w["id"]: w["rank"] for w in scene.snapshot()["workers"] if w["rank"] is not None}
    assert placed.get("guest") == 0, placed


def test_keys_open_what_their_roles_say(scene: Scene) -> None:
    with scene.client(scene.alice) as alice, scene.client(scene.operator) as operator:
        assert alice.generate("Q:", max_tokens=2).token_ids
        assert operator.cluster()["state"] in ("serving", "recovering")
        for refused in (alice.cluster, lambda: alice.drain("guest"), lambda: operator.generate("Q:")):
            with pytest.raises(PermissionDenied):
                refused()
    for wrong in ("", "not-one-of-their-keys-0123", scene.token_file.read_text().strip()):
        with scene.client(wrong) as stranger, pytest.raises(Unauthenticated):
            stranger.generate("Q:")
    with scene.http(scene.alice) as http:
        body = {"prompt": "Q:", "max_tokens": 2}
        assert http.post("/v1/completions", json=body).status_code == 200
        assert http.get("/cluster").status_code == http.get("/metrics").status_code == 403
    with scene.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 401
        assert http.get("/cluster").status_code == http.get("/openapi.json").status_code == 401
        assert http.get("/livez").status_code == http.get("/").status_code == 200


def test_whoever_has_no_certificate_of_ours_does_not_get_to_show_a_key(scene: Scene) -> None:
    for pair in (scene.foreign, scene.expired):
        with scene.client(scene.alice, pair) as client, pytest.raises(Disconnected):
            client.generate("Q:")
    for options in ({}, {"tls_ca_file": scene.ca}, {"tls": True}):
        with (
            Client(scene.cluster.grpc, api_key=scene.alice, connect_timeout_s=0.0, **options) as client,
            pytest.raises(Disconnected),
        ):
            client.generate("Q:")
    with httpx.Client(trust_env=False) as http, pytest.raises(httpx.TransportError):
        http.get(scene.cluster.http.replace("https", "http") + "/livez")
    for address in (scene.cluster.grpc, scene.cluster.http.partition("//")[2]):
        host, _, port = address.rpartition(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(3000),
            b"\x16\x03\x01\xff\xff" + os.urandom(300),
        ):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(garbage)


def registration(worker_id: str, incarnation: str) -> cluster_pb2.RegisterRequest:
    return cluster_pb2.RegisterRequest(
        worker_id=worker_id,
        incarnation=incarnation,
        address="127.0.0.1:1",
        device=cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=2**34),
    )


def test_a_stranger_can_not_join(scene: Scene) -> None:
    """Though its certificate is good."""
    wrong = scene.directory / "wrong-token"
    wrong.write_bytes(new_token())
    wrong.chmod(0o600)
    for token_file, said in ((None, "only members"), (wrong, "not this cluster's")):
        dialer = scene.dialer(Role.WORKER, token_file)
        with dialer.sync(scene.cluster.grpc, tls=True) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(dialer.proving(channel))
            code, text = status_of(lambda stub=stub: stub.Register(registration("stranger", "1")))
            assert (code, said in text) == ("UNAUTHENTICATED", True), text
            beats = stub.Heartbeat(iter([cluster_pb2.HeartbeatRequest(worker_id="guest")]))
            assert status_of(lambda beats=beats: next(beats))[0] == "UNAUTHENTICATED"
            meeting = cluster_pb2_grpc.RendezvousServiceStub(dialer.proving(channel))
            assert status_of(lambda m=meeting: m.CheckValues(cluster_pb2.CheckValuesRequest()))[0] == (
                "UNAUTHENTICATED"
            )
    with Program(
        "shard-worker", "--coordinator", scene.cluster.grpc, "--worker-id", "stranger", "--device", "cpu",
        "--join-token-file", str(wrong), "--tls-ca-file", str(scene.ca), "--tls-cert-file", str(scene.me.cert),
        "--tls-key-file", str(scene.me.key), module="ryzanstein_shard_worker",
    ) as worker:  # fmt: skip
        assert worker.wait(30) == 1
        assert "refused this worker: the join token is not this cluster's" in worker.stderr
    assert "stranger" not in {w["id"] for w in scene.snapshot()["workers"]}


def test_what_was_said_before_can_not_be_said_again(scene: Scene) -> None:
    """A proof that somebody has overheard; the incarnation of a process that is dead."""
    tokens = JoinTokens.from_file(scene.token_file)
    old = registration("old", "1")
    proof = ((PROOF_KEY, tokens.prove(Role.WORKER, REGISTER, old.SerializeToString())),)
    with scene.dialer(Role.WORKER).sync(scene.cluster.grpc, tls=True) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        first = status_of(lambda: stub.Register(old, metadata=proof))
        assert first[0] == "FAILED_PRECONDITION", "the token is good, the versions are not"
        again = status_of(lambda: stub.Register(old, metadata=proof))
        assert (again[0], "used before" in again[1]) == ("UNAUTHENTICATED", True)
        passed_on = ((PROOF_KEY, tokens.prove(Role.WORKER, REGISTER, old.SerializeToString())),)
        changed = status_of(lambda: stub.Register(registration("mine", "1"), metadata=passed_on))
        assert (changed[0], "is not the one" in changed[1]) == ("UNAUTHENTICATED", True)
        member = cluster_pb2_grpc.ClusterServiceStub(
            scene.dialer(Role.WORKER, scene.token_file).proving(channel)
        )
        beats = member.Heartbeat(iter([cluster_pb2.HeartbeatRequest(worker_id="guest", incarnation="dead")]))
        assert status_of(lambda: next(beats))[0] == "ABORTED"


def test_a_stranger_can_not_drive_a_worker(scene: Scene) -> None:
    workers = [w for w in scene.snapshot()["workers"] if w["state"] not in ("lost", "failed")]
    assert {"guest"} < {worker["id"] for worker in workers}
    drain = shard_worker_pb2.DrainRequest(epoch=2**40, reason="an intruder says so")
    for worker in workers:
        address = listening(worker["pid"])
        with grpc.insecure_channel(address) as channel:
            stub = shard_worker_pb2_grpc.ShardWorkerServiceStub(channel)
            expected = "UNAVAILABLE" if worker["id"] == "guest" else "UNAUTHENTICATED"
            assert status_of(lambda stub=stub: stub.Drain(drain, timeout=5))[0] == expected
            steps = stub.Execute(iter([shard_worker_pb2.ExecuteRequest(epoch=1)]), timeout=5)
            assert status_of(lambda steps=steps: next(steps))[0] == expected
        if worker["id"] == "guest":
            # Another worker, with a certificate and even the token, is not the coordinator.
            for token_file in (None, scene.token_file):
                dialer = scene.dialer(Role.WORKER, token_file)
                with dialer.sync(address, tls=True) as channel:
                    stub = shard_worker_pb2_grpc.ShardWorkerServiceStub(dialer.proving(channel))
                    assert status_of(lambda stub=stub: stub.Drain(drain, timeout=5))[0] == "UNAUTHENTICATED"
    assert {w["id"] for w in scene.snapshot()["workers"] if w["state"] == "draining"} == set()


def test_a_flood_of_strangers_is_refused_and_the_others_go_on(scene: Scene) -> None:
    with (
        scene.client(scene.alice, patience_s=20.0) as client,
        scene.dialer(Role.WORKER).sync(scene.cluster.grpc, tls=True) as flood,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(flood)
        calls = [stub.Generate(inference_pb2.GenerateRequest(text="Q:"), timeout=30) for _ in range(3000)]
        assert client.generate("Q:", max_tokens=3).token_ids
        # Beyond the streams that one connection may have, HTTP/2 itself refuses.
        codes = Counter(call.code().name for call in calls)
        assert set(codes) <= {"UNAUTHENTICATED", "UNAVAILABLE", "CANCELLED"}
        assert codes["UNAUTHENTICATED"] > 1000
        operations = operations_pb2_grpc.OperationsServiceStub(flood)
        key = ("authorization", f"Bearer {scene.operator}")
        huge = (key, ("x", "y" * 100_000))
        get = operations_pb2.GetClusterRequest()
        assert status_of(lambda: operations.GetCluster(get, metadata=huge))[0] == "RESOURCE_EXHAUSTED"
        assert operations.GetCluster(get, metadata=(key,)).cluster.state
        assert client.generate("Q:", max_tokens=3).token_ids
    refusals = [line for line in scene.cluster.stderr_lines if "calls_refused" in line]
    assert 1 <= len(refusals) < 50, "strangers fill the log"


def test_a_models_name_is_no_path(scene: Scene) -> None:
    with scene.client(scene.alice) as client, scene.http(scene.alice) as http:
        for name in ("../../etc/passwd", "/etc/passwd", "..", "\\..\\x", "bundled_model/../bundled_model"):
            with pytest.raises(NotFound):
                client.generate("Q:", model=name, max_tokens=1)
            reply = http.post("/v1/completions", json={"prompt": "Q:", "model": name})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        for path in (
            "/v1/models/..%2f..%2fetc%2fpasswd",
            "/dashboard/..%2fkeys.js",
            "/dashboard/%2e%2e/server.py",
        ):
            assert http.get(path).status_code in (403, 404)


def test_no_secret_is_in_arguments_environments_logs_or_what_is_shown(scene: Scene) -> None:
    shown = {"log": scene.cluster.stderr, "the guest's log": scene.guest.stderr}
    processes = [psutil.Process(scene.cluster.process.pid), *scene.cluster.children()]
    for process in [*processes, psutil.Process(scene.guest.process.pid)]:
        for name in ("cmdline", "environ"):
            shown[f"{name} of {process.pid}"] = Path(f"/proc/{process.pid}/{name}").read_text(
                errors="replace"
            )
    with scene.http(scene.operator) as http:
        for path in ("/cluster", "/metrics", "/openapi.json"):
            shown[path] = http.get(path).raise_for_status().text
    for where, text in shown.items():
        for secret in scene.secrets:
            assert secret not in text, f"a secret is in {where}"
    state = {path: path.stat().st_mode & 0o077 for path in (scene.directory / "state").rglob("*")}
    assert state, "the cluster keeps what must outlive it"
    assert not any(state.values()), f"others can read {state}: prompts are in it"
