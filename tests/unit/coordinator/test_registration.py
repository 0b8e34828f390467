"""Who may join."""

from __future__ import annotations

import math
from dataclasses import replace

import grpc
import pytest

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import cluster_pb2
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.registration import examine
from ryzanstein_coordinator.snapshot import telemetry_of
from ryzanstein_coordinator.state import ClusterState
from ryzanstein_coordinator.worker_record import DeviceRecord

from .cluster_builders import GIB, shard, worker


def request(**changes: object) -> cluster_pb2.RegisterRequest:
    fields: dict[str, object] = {
        "worker_id": "w0",
        "incarnation": "w0-1",
        "host": "alpha",
        "host_id": "boot/1",
        "pid": 42,
        "address": "127.0.0.1:4000",
        "device": cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=GIB, free_bytes=GIB),
        "versions": cluster_pb2.Versions(release="1.0", wire=WIRE_VERSION, numerics=NUMERICS_VERSION),
        "highest_epoch": 7,
    }
    return cluster_pb2.RegisterRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_new_worker_is_taken_in_without_a_rank() -> None:
    record = examine(5.0, ClusterState(), request())
    assert (record.worker_id, record.pid, record.address) == ("w0", 42, "127.0.0.1:4000")
    assert (record.rank, record.stream, record.seen_epoch) == (None, 0, 7)
    assert record.registered_at_s == 5.0


@pytest.mark.parametrize("version", ["wire", "numerics"])
def test_other_versions_are_refused_with_both_numbers(version: str) -> None:
    versions = cluster_pb2.Versions(release="9.9", wire=WIRE_VERSION, numerics=NUMERICS_VERSION)
    setattr(versions, version, 99)
    with pytest.raises(StatusError, match=f"9.9.*{version} version 99") as caught:
        examine(0.0, ClusterState(), request(versions=versions))
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


def computing_with(instructions: str, threads: int = 0) -> cluster_pb2.RegisterRequest:
    device = cluster_pb2.Device(name="cpu", kind="cpu", total_bytes=GIB, instructions=instructions)
    return request(worker_id="w1", incarnation="w1-1", device=device, cpu_threads=threads)


def test_a_worker_that_computes_with_other_instructions_is_refused_where_tokens_have_to_be_the_same() -> None:
    there = worker("w0", device=DeviceRecord(total_bytes=GIB, instructions="AVX512, AMX"))
    state = ClusterState(workers={"w0": there})
    assert examine(0.0, state, computing_with("AVX512, AMX")).device.instructions == "AVX512, AMX"
    with pytest.raises(
        StatusError,
        match=r"w1 on alpha computes with AVX512, --cpu-threads 0, but w0 on .* with AVX512, AMX, --cpu-threads 0",
    ) as caught:
        examine(0.0, state, computing_with("AVX512"))
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "--no-reproducible" in caught.value.message
    assert examine(0.0, state, computing_with("AVX512"), equal_bits=False).worker_id == "w1"
    assert examine(0.0, state, computing_with("")).worker_id == "w1", "an older release does not say"
    with pytest.raises(StatusError, match="AVX512, AMX, --cpu-threads 2"):
        examine(0.0, state, computing_with("AVX512, AMX", threads=2))
    gone = ClusterState(workers={"w0": replace(there, lost_reason="killed")})
    assert examine(0.0, gone, computing_with("AVX512")).worker_id == "w1"


def test_who_computes_otherwise_waits_for_the_ranks_of_before_the_restart() -> None:
    before = "AVX512, AMX, --cpu-threads 1"
    with pytest.raises(StatusError, match="w1 on alpha computes with AVX512, --cpu-threads 1") as caught:
        examine(0.0, ClusterState(), computing_with("AVX512", threads=1), before=before)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE, "it asks again"
    for text in ("AVX512, AMX", ""):
        assert examine(0.0, ClusterState(), computing_with(text, threads=1), before=before).worker_id == "w1"
    assert (
        examine(
            0.0, ClusterState(), computing_with("AVX512", threads=1), equal_bits=False, before=before
        ).worker_id
        == "w1"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"worker_id": ""}, "worker_id"),
        ({"worker_id": "x" * 129}, "worker_id"),
        ({"incarnation": "a\nb"}, "incarnation"),
        ({"address": "nowhere"}, "address 'nowhere'"),
        ({"address": "host:0"}, "address 'host:0'"),
        ({"address": "host:²"}, "address 'host:²'"),
        ({"host": "x" * 257}, "longer than 256"),
        ({"highest_epoch": 2**64 - 1}, "epoch 18446744073709551615"),
        ({"device": cluster_pb2.Device(kind="tpu", total_bytes=1)}, "'tpu'"),
        ({"device": cluster_pb2.Device(kind="cpu")}, "no memory"),
    ],
)
def test_a_request_that_makes_no_sense_is_invalid(changes: dict[str, object], named: str) -> None:
    with pytest.raises(StatusError, match=named) as caught:
        examine(0.0, ClusterState(), request(**changes))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_heartbeat_of_nonsense_becomes_numbers_that_can_be_shown() -> None:
    beat = cluster_pb2.HeartbeatRequest(
        load_progress=math.nan, progress_age_s=-1.0, communication_ratio=7.0, step_duration_s=math.inf
    )
    report = telemetry_of(5.0, beat, GIB)
    assert (report.load_progress, report.progress_age_s) == (0.0, 0.0)
    assert (report.communication_ratio, report.step_duration_s, report.total_bytes) == (1.0, 0.0, GIB)


def test_the_same_process_comes_back_with_what_it_holds() -> None:
    known = worker("w0", stream=4, group="g0", rank=1, shard=shard(1), suspect=True)
    record = examine(9.0, ClusterState(workers={"w0": known}), request(address="127.0.0.1:5000"))
    assert record == replace(
        known, registered_at_s=9.0, address="127.0.0.1:5000", seen_epoch=7, suspect=False
    )


def test_the_same_process_that_was_given_up_begins_without_a_stream() -> None:
    known = worker("w0", stream=4, lost_reason="lease", shard=shard(1), fence_epoch=3)
    record = examine(9.0, ClusterState(workers={"w0": known}), request())
    assert (record.stream, record.heard, record.lost_reason, record.fence_epoch) == (0, False, "", 3)
    assert record.shard == shard(1)


def test_a_new_process_begins_with_nothing() -> None:
    known = worker("w0", rank=1, group="g0", shard=shard(1), failed_reason="broken", strikes=4)
    record = examine(9.0, ClusterState(workers={"w0": known}), request(incarnation="w0-2"))
    assert (record.rank, record.group, record.shard, record.failed_reason) == (None, None, None, "")
    assert (record.strikes, record.replaced) == (0, ("w0-1",))


def test_two_living_processes_with_one_id_are_found_out() -> None:
    state = ClusterState(workers={"w0": worker("w0", incarnation="w0-2", replaced=("w0-1",))})
    with pytest.raises(StatusError, match=r"taken over.*--worker-id") as caught:
        examine(0.0, state, request())
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
