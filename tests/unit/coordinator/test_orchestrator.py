"""The orchestrator's loop against workers that are real gRPC servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from ryzanstein import NUMERICS_VERSION
from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc, operations_pb2, operations_pb2_grpc, shard_worker_pb2
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.epoch_store import EpochStore
from ryzanstein_coordinator.group_record import Cause, GroupState, Phase
from ryzanstein_coordinator.orchestrator import MultiGPUOrchestrator
from ryzanstein_coordinator.state import worker_state
from ryzanstein_coordinator.worker_record import WorkerState
from ryzanstein_coordinator.workers import CallError, Workers

from .cluster_builders import GIB, MIB, configuration
from .fake_workers import MODEL, Cluster, FakeWorker, running_cluster
from .test_registration import request


def shown(cluster: Cluster, worker_id: str) -> WorkerState:
    state = cluster.orchestrator.state
    worker = state.workers[worker_id]
    return worker_state(worker, state.group(worker.group or ""))


async def test_two_workers_become_a_group_that_serves(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        assert not cluster.orchestrator.readiness()[0]
        await cluster.start("w1", "w0")
        epoch = await cluster.until_serving()
        assert cluster.router.told == [("ready", "g0", epoch)]
        (view,) = cluster.orchestrator.groups()
        assert (view.state, view.epoch) == (GroupState.SERVING, epoch)
        assert cluster.router.limits == view.limits
        load, join = cluster.workers["w1"].loads[-1], cluster.workers["w1"].joins[-1]
        assert (load.epoch, load.rank, load.tensor_parallel_size) == (epoch, 1, 2)
        assert (load.model.fingerprint, load.model.dtype, load.model.max_model_len) == (
            "f00d",
            "float32",
            256,
        )
        assert [(m.rank, m.worker_id, m.pid) for m in join.members] == [(0, "w0", 1001), (1, "w1", 1001)]
        assert join.backend == shard_worker_pb2.BACKEND_SHARED_MEMORY
        assert join.limits == load.limits
        assert join.nonce
    assert EpochStore(tmp_path).members() == {"g0": ("w0", "w1")}


async def test_an_epoch_is_durable_before_a_worker_hears_of_it(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1")
        epoch = await cluster.until_serving()
        reader = EpochStore(tmp_path)
        assert reader.highest() >= epoch
        reader.close()


async def test_a_dead_rank_is_replaced_by_the_spare(tmp_path: Path) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster:
        cluster.router.resumed = 24
        await cluster.start("w0", "w1", "w2")
        first = await cluster.until_serving()
        victim, survivor = cluster.members[1], cluster.members[0]
        await cluster.until(lambda: len(cluster.orchestrator.state.workers) == 3)
        await cluster.workers[victim].die()
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > first)
        second = await cluster.until_serving()
        assert cluster.router.told == [("ready", "g0", first), ("lost", "g0", first), ("ready", "g0", second)]
        assert victim not in cluster.members
        assert shown(cluster, victim) is WorkerState.LOST
        assert cluster.workers[survivor].aborts[-1].epoch == second
        cluster.orchestrator.first_token_after_ready("g0", second, cluster.orchestrator.now_s)
        recovery = cluster.orchestrator.snapshot().last_recovery
        assert (recovery.epoch, recovery.cause, recovery.culprit.worker_id) == (second, "process", victim)
        assert (recovery.culprit.rank, recovery.requests_resumed) == (1, 24)
        assert 0 <= recovery.detected_s <= recovery.fenced_s <= recovery.reformed_s <= recovery.first_token_s


async def test_a_worker_that_hangs_loses_its_lease_and_comes_back_as_a_standby(tmp_path: Path) -> None:
    async with running_cluster(configuration(lease_ttl_s=0.4), tmp_path) as cluster:
        await cluster.start("w0", "w1", "w2")
        first = await cluster.until_serving()
        victim = cluster.members[0]
        cluster.workers[victim].hang()
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > first)
        second = await cluster.until_serving()
        recovery = cluster.orchestrator.state.groups[0].recovery
        assert recovery is not None
        assert (recovery.cause, recovery.reason) == (
            Cause.LEASE,
            f"{victim} (rank 0) was not heard of for 0.4 s",
        )
        cluster.workers[victim].wake()
        await cluster.until(lambda: shown(cluster, victim) is WorkerState.STANDBY)
        await cluster.until(lambda: cluster.workers[victim].inside is None)
        assert cluster.orchestrator.state.groups[0].epoch == second


async def test_a_reported_fault_re_forms_the_group_and_names_the_peer(tmp_path: Path) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster:
        await cluster.start("w0", "w1", "w2")
        epoch = await cluster.until_serving()
        reporter, blamed = cluster.members
        fault = cluster_pb2.Fault(kind="collective", message="no answer", epoch=epoch, peer_rank=1)
        cluster.workers[reporter].report(fault)
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > epoch)
        await cluster.until_serving()
        snapshot = cluster.orchestrator.snapshot()
        assert snapshot.last_recovery.cause == "collective"
        assert snapshot.last_recovery.culprit.worker_id == blamed
        assert snapshot.last_recovery.reason == f"{reporter} (rank 0) reports: no answer"


async def test_a_new_process_of_a_worker_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1")
        epoch = await cluster.until_serving()
        old = cluster.workers["w1"]
        await cluster.start("w1")  # the old process is still there
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > epoch)
        await cluster.until_serving()
        assert cluster.orchestrator.state.groups[0].members[1].incarnation == "w1-2"
        await cluster.until(lambda: bool(old.refused))
        assert "taken over by the process 1002" in old.refused
        await old.die()


async def test_a_worker_with_another_checkpoint_fails_and_a_worker_with_other_numerics_is_refused(
    tmp_path: Path,
) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster:
        await cluster.start("w0", checkpoint="beef")
        await cluster.start("w1", numerics=NUMERICS_VERSION + 1)
        await cluster.until(lambda: bool(cluster.workers["w1"].refused))
        await cluster.start("w2", "w3")
        await cluster.until_serving()
        assert set(cluster.members) == {"w2", "w3"}
        await cluster.until(lambda: shown(cluster, "w0") is WorkerState.FAILED)
        assert "another checkpoint: beef" in cluster.orchestrator.state.workers["w0"].failed_reason
        assert "numerics version" in cluster.workers["w1"].refused
        assert "w1" not in cluster.orchestrator.state.workers


async def test_a_worker_without_the_checkpoint_is_marked_so_that_a_peer_sends_it(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0")
        await cluster.start("w1", has_files=False)
        await cluster.until_serving()
        members = cluster.workers["w0"].joins[-1].members
        assert [(member.loaded, member.has_files) for member in members] == [(True, True), (False, False)]


async def test_devices_that_are_too_small_are_told_what_would_fit(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1", total_bytes=GIB // 2)
        await cluster.until(lambda: "needs" in cluster.orchestrator.state.groups[0].reason)
        group = cluster.orchestrator.state.groups[0]
        assert group.phase is Phase.VACANT
        assert "shared by 2 workers" in group.reason
        assert cluster.workers["w0"].loads == []


async def test_a_restarted_coordinator_gives_the_ranks_back_in_a_higher_epoch(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w1", "w0")
        first = await cluster.until_serving()
        members = cluster.members
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1")
        second = await cluster.until_serving()
        assert second > first
        assert cluster.members == members


async def test_a_drained_rank_ends_after_the_spare_has_taken_over(tmp_path: Path) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster:
        await cluster.start("w0", "w1", "w2")
        await cluster.until_serving()
        leaving = cluster.members[0]
        async with grpc.aio.insecure_channel(cluster.address) as channel:
            operations = operations_pb2_grpc.OperationsServiceStub(channel)
            await cluster.until(
                lambda: all(
                    shown(cluster, w) in (WorkerState.ACTIVE, WorkerState.STANDBY) for w in ("w0", "w1", "w2")
                )
            )
            await operations.DrainWorker(operations_pb2.DrainWorkerRequest(worker_id=leaving))
            await cluster.until(lambda: leaving not in cluster.orchestrator.state.workers)
            await cluster.until_serving()
            assert cluster.workers[leaving].drained.is_set()
            with pytest.raises(grpc.aio.AioRpcError, match="no standby can take it") as refused:
                await operations.DrainWorker(operations_pb2.DrainWorkerRequest(worker_id=cluster.members[0]))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            with pytest.raises(grpc.aio.AioRpcError, match="there is no worker 'nobody'") as unknown:
                await operations.DrainWorker(operations_pb2.DrainWorkerRequest(worker_id="nobody"))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_closing_asks_workers_to_end_and_ends_watchers(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1")
        await cluster.until_serving()

        async def watch_to_the_end() -> int:
            return len([snapshot async for snapshot in cluster.orchestrator.watch()])

        watcher = asyncio.create_task(watch_to_the_end())
        cluster.orchestrator.begin_drain()
        assert cluster.orchestrator.readiness() == (False, "the server is stopping")
        assert cluster.orchestrator.snapshot().groups[0].state == "draining"
        await cluster.orchestrator.close(drain_workers=True)
        assert await watcher >= 1
        assert all(worker.drained.is_set() for worker in cluster.workers.values())


async def test_a_worker_that_saw_a_later_epoch_than_this_coordinator_can_be_told_to_end(
    tmp_path: Path,
) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        for worker_id in ("w0", "w1"):
            worker = FakeWorker(worker_id, 1, cluster.address)
            worker.epoch = 9
            cluster.workers[worker_id] = worker
        await cluster.workers["w0"].start()
        await cluster.until(lambda: "w0" in cluster.orchestrator.state.telemetry)
        assert cluster.orchestrator.state.announced_epoch == 0
        cluster.orchestrator.drain_worker("w0")
        await cluster.until(lambda: "w0" not in cluster.orchestrator.state.workers)
        await cluster.workers["w1"].start()
        await cluster.until(lambda: "w1" in cluster.orchestrator.state.workers)
        await cluster.orchestrator.close(drain_workers=True)
        assert cluster.workers["w0"].drained.is_set()
        assert cluster.workers["w1"].drained.is_set()


async def test_workers_that_leave_at_the_end_are_no_fault(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0", "w1")
        epoch = await cluster.until_serving()
        cluster.workers["w0"].answers_drain_late_s = 0.2  # its heartbeat stream ends before that
        await cluster.orchestrator.close(drain_workers=True)
        assert all(worker.drained.is_set() for worker in cluster.workers.values())
        group = cluster.orchestrator.state.groups[0]
        assert (group.phase, group.epoch, group.recovery) == (Phase.SERVING, epoch, None)


async def test_a_call_to_a_process_that_is_given_up_fails_as_a_call(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        await cluster.start("w0")
        await cluster.until(lambda: "w0" in cluster.orchestrator.state.workers)
        cluster.workers["w0"].answers_drain_late_s = 10.0
        workers = Workers()
        record = cluster.orchestrator.state.workers["w0"]
        workers.open(record)
        connection = workers.of("w0", record.incarnation)
        assert connection is not None
        call = asyncio.create_task(connection.drain(shard_worker_pb2.DrainRequest()))
        await cluster.workers["w0"].drained.wait()
        workers.drop("w0", record.incarnation)
        with pytest.raises(CallError, match="was closed") as failed:
            await call
        assert failed.value.code is grpc.StatusCode.CANCELLED
        await workers.close()


async def test_the_operations_service_shows_the_cluster_and_plans_memory(tmp_path: Path) -> None:
    async with (
        running_cluster(configuration(spares=0), tmp_path) as cluster,
        grpc.aio.insecure_channel(cluster.address) as channel,
    ):
        operations = operations_pb2_grpc.OperationsServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="give device_bytes"):
            await operations.PlanMemory(operations_pb2.PlanMemoryRequest())
        await cluster.start("w0", "w1")
        epoch = await cluster.until_serving()
        reply = await operations.GetCluster(operations_pb2.GetClusterRequest())
        assert (reply.epoch, reply.cluster.state, reply.cluster.model.name) == (epoch, "serving", "tiny")
        assert [worker.rank for worker in reply.cluster.workers] == [0, 1]
        assert reply.cluster.workers[0].memory.weights_bytes == 5 * MIB
        assert (reply.cluster.requests.running, reply.cluster.requests.waiting) == (2, 1)
        async for seen in operations.WatchCluster(operations_pb2.WatchClusterRequest()):
            assert seen.cluster.revision >= reply.cluster.revision
            break
        plan = await operations.PlanMemory(operations_pb2.PlanMemoryRequest(tensor_parallel_size=4))
        assert (plan.fits, len(plan.ranks), plan.epoch) == (True, 4, epoch)
        for size in (3, 2**32 - 1):  # nobody can make the coordinator plan for billions of ranks
            with pytest.raises(grpc.aio.AioRpcError, match="sizes that work: 1, 2, 4, 8") as wrong:
                await operations.PlanMemory(operations_pb2.PlanMemoryRequest(tensor_parallel_size=size))
            assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        small = operations_pb2.PlanMemoryRequest(device_bytes=64 * MIB)
        assert not (await operations.PlanMemory(small)).fits


async def test_a_heartbeat_of_a_stranger_is_told_to_register(tmp_path: Path) -> None:
    async with (
        running_cluster(configuration(spares=0), tmp_path) as cluster,
        grpc.aio.insecure_channel(cluster.address) as channel,
    ):
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        call = stub.Heartbeat(iter([cluster_pb2.HeartbeatRequest(worker_id="w9", incarnation="x")]))
        with pytest.raises(grpc.aio.AioRpcError, match="register again") as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.ABORTED


async def test_who_computes_otherwise_waits_for_the_ranks_a_lease_from_the_first_that_comes(
    tmp_path: Path,
) -> None:
    now_s = 100.0
    store = EpochStore(tmp_path)
    store.remember("g0", 3, (), 256, "AVX512, AMX, --cpu-threads 1")
    orchestrator = MultiGPUOrchestrator(configuration(lease_ttl_s=1.0), MODEL, store, clock=lambda: now_s)

    def register(number: int, instructions: str) -> None:
        device = cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=GIB, instructions=instructions)
        orchestrator.register(request(worker_id=f"w{number}", incarnation=f"w{number}-1", device=device))

    now_s += 60.0  # however long it took to begin to listen
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StatusError, match="they are waited for first"):
                register(0, "AVX2")
    assert [entry["event"] for entry in logs] == ["worker_refused"], "it asks several times a second"
    now_s += 1.0
    register(0, "AVX2")
    with pytest.raises(StatusError, match="but w0 on"):
        register(1, "AVX512, AMX")
    store.close()
