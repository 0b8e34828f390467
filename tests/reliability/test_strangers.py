"""Messages that belong to the past, workers that don't fit, and a client that drops while things are mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.join_calls import Dialer
from ryzanstein.join_proof import JoinTokens, Role
from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc, shard_worker_pb2, shard_worker_pb2_grpc
from ryzanstein_client import AsyncClient
from tests.checkpoints import make_checkpoint
from tests.cluster.harness import Program
from tests.unit.client.cutting_proxy import CuttingProxy

from .conftest import Scene


def address_of(pid: int) -> str:
    """Where a worker listens."""
    listening = [c for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    (connection,) = listening
    return f"127.0.0.1:{connection.laddr.port}"


@pytest.fixture
def token_file(scene: Scene, tmp_path: Path) -> Path:
    """With it a caller is one of the cluster: these are not refused because they are strangers."""
    return scene.cluster.join_token_file(tmp_path)


def leader_of(scene: Scene, token_file: Path, channels: ExitStack) -> Any:
    """Called as its coordinator does it."""
    dialer = Dialer(Role.COORDINATOR, tokens=JoinTokens.from_file(token_file))
    channel = channels.enter_context(dialer.sync(address_of(scene.worker(0)["pid"]), tls=False))
    return shard_worker_pb2_grpc.ShardWorkerServiceStub(dialer.proving(channel))


OLD_MESSAGES: dict[str, Callable[[Any], Any]] = {
    "Abort": lambda stub: stub.Abort(shard_worker_pb2.AbortRequest(epoch=1, reason="from the past")),
    "LoadShard": lambda stub: stub.LoadShard(shard_worker_pb2.LoadShardRequest(epoch=1)),
    "JoinGroup": lambda stub: stub.JoinGroup(shard_worker_pb2.JoinGroupRequest(epoch=1)),
    "Drain": lambda stub: stub.Drain(shard_worker_pb2.DrainRequest(epoch=1)),
    "Release": lambda stub: stub.Release(shard_worker_pb2.ReleaseRequest(epoch=1)),
}


@pytest.mark.parametrize("message", OLD_MESSAGES)
def test_a_message_of_an_old_epoch_is_refused_with_the_reason(
    scene: Scene, token_file: Path, message: str
) -> None:
    if scene.epoch == 1:  # so that there is a past
        psutil.Process(scene.worker(1)["pid"]).kill()
        scene.recovered(1)
        scene.whole()
    epoch = scene.epoch
    with ExitStack() as channels, pytest.raises(grpc.RpcError) as refused:
        OLD_MESSAGES[message](leader_of(scene, token_file, channels))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "epoch 1" in (refused.value.details() or "")
    assert str(epoch) in (refused.value.details() or "")
    scene.traffic.wait_for_flow()
    assert scene.epoch == epoch


@pytest.mark.parametrize(
    ("wire", "numerics"), [(WIRE_VERSION + 1, NUMERICS_VERSION), (WIRE_VERSION, NUMERICS_VERSION + 1)]
)
def test_a_worker_of_another_version_is_refused_with_the_reason(
    scene: Scene, token_file: Path, wire: int, numerics: int
) -> None:
    epoch = scene.epoch
    dialer = Dialer(Role.WORKER, tokens=JoinTokens.from_file(token_file))
    with dialer.sync(scene.cluster.grpc, tls=False) as channel, pytest.raises(grpc.RpcError) as refused:
        cluster_pb2_grpc.ClusterServiceStub(dialer.proving(channel)).Register(
            cluster_pb2.RegisterRequest(
                worker_id="stranger",
                incarnation="1",
                host="elsewhere",
                host_id="elsewhere",
                pid=1,
                address="127.0.0.1:1",
                device=cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=2**34, free_bytes=2**34),
                versions=cluster_pb2.Versions(release="9.9", wire=wire, numerics=numerics),
            )
        )
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "9.9" in (refused.value.details() or "") or "version" in (refused.value.details() or "")
    scene.traffic.wait_for_flow()
    assert scene.epoch == epoch


def test_a_worker_with_another_checkpoint_is_refused_and_disturbs_nobody(
    scene: Scene, token_file: Path, tmp_path: Path
) -> None:
    epoch = scene.epoch
    other = make_checkpoint(tmp_path / "other")
    arguments = ["shard-worker", "--coordinator", scene.cluster.grpc, "--model-dir", str(other)]
    arguments += ["--worker-id", "stranger", "--device", "cpu", "--cpu-threads", "1"]
    arguments += ["--join-token-file", str(token_file)]
    with Program(*arguments, module="ryzanstein_shard_worker"):
        snapshot = scene.cluster.wait_for(
            lambda s: any(w["id"] == "stranger" and w["state"] == "failed" for w in s["workers"]),
            "the stranger is refused",
        )
        stranger = next(worker for worker in snapshot["workers"] if worker["id"] == "stranger")
        assert "another checkpoint" in stranger["phase"]
        scene.traffic.wait_for_flow()
    assert scene.epoch == epoch


async def test_a_client_that_drops_in_the_midst_of_a_recovery_gets_the_rest(scene: Scene) -> None:
    proxy = CuttingProxy(int(scene.cluster.grpc.rpartition(":")[2]))
    await proxy.start()
    options: dict[str, Any] = {"max_tokens": 300, "temperature": 1.0, "seed": 77, "ignore_eos": True}
    try:
        async with AsyncClient(scene.cluster.grpc) as direct, AsyncClient(proxy.address) as client:
            expected = (await direct.generate("Q: ", **options)).token_ids
            epoch, victim = scene.epoch, scene.worker(1)
            tokens: list[int] = []
            async for chunk in client.stream("Q: ", **options):
                tokens += chunk.token_ids
                if victim and len(tokens) >= 30:
                    psutil.Process(victim["pid"]).kill()
                    victim = {}
                    proxy.cut()
                    await asyncio.sleep(0.01)
                    proxy.cut()
        assert tuple(tokens) == tuple(expected)
        assert await asyncio.to_thread(lambda: scene.epoch) > epoch
    finally:
        await proxy.close()
