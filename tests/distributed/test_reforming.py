"""The next epoch in the same process, again and again; and what ranks do when they can't share memory."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ryzanstein_shard_worker.communication import CommunicationError, segment
from ryzanstein_shard_worker.communication.sockets import socket_inodes
from ryzanstein_shard_worker.communication.tcp_step_channel import TcpStepChannel

from .ranks import CPU_BACKENDS, GLOO, SHARED_MEMORY, Backend, Rank, Ranks, needs_native_library

EPOCHS = 20
#: The first rounds fill caches: of the allocator, of gRPC, of gloo.
WARM_UP = 5


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks(3) as ranks:
        yield ranks


def work_then_fail(rank: Rank) -> None:
    handler = rank.handler
    for _ in range(3):
        handler.all_reduce(torch.ones(50_000))
    handler.barrier()
    if handler.rank == 0:
        rank.channel.send(b"x" * 5000)
    else:
        assert rank.channel.receive(5.0) == b"x" * 5000
    if handler.rank == 2:
        time.sleep(0.02)  # the others are blocked by now
        rank.manager.abort("a failure in every epoch")
    with pytest.raises(CommunicationError):
        handler.all_reduce(torch.ones(50_000))


def resources(rank: Rank) -> tuple[int, int, int]:
    """→ (file descriptors, threads, resident KiB) once what was dropped is gone."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        names = [thread.name for thread in threading.enumerate()]
        if not any(name.startswith(("gloo", "nccl")) for name in names):
            break
        time.sleep(0.01)
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return count("/proc/self/fd"), count("/proc/self/task"), resident


def count(directory: str) -> int:
    return len(list(Path(directory).iterdir()))


def leave(rank: Rank) -> None:
    rank.manager.leave(rank.group.epoch)


def ours_in_dev_shm() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob("ryzanstein*")]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("host_ids", [["a", "a", "a"], ["a", "b", "c"]], ids=["one_host", "three_hosts"])
def test_twenty_faults_leave_descriptors_threads_and_memory_as_they_were(
    ranks: Ranks, backend: Backend, host_ids: list[str]
) -> None:
    before: list[tuple[int, int, int]] = []
    for epoch in range(EPOCHS + WARM_UP):
        ranks.form(backend, host_ids=host_ids)
        ranks.call(work_then_fail)
        ranks.call(leave)
        if epoch == WARM_UP - 1:
            before = ranks.call(resources)
    after = ranks.call(resources)
    for (fds, threads, resident_kib), (fds_after, threads_after, resident_kib_after) in zip(
        before, after, strict=True
    ):
        assert fds_after <= fds
        assert threads_after <= threads
        assert resident_kib_after - resident_kib < 8 * 1024
    assert ours_in_dev_shm() == []


def give_up_joining(rank: Rank, request: bytes) -> None:
    timer = threading.Timer(0.05, rank.manager.abort, ["nobody comes"])
    timer.start()
    with pytest.raises(CommunicationError):
        rank.join(request)
    timer.join()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("host_ids", [["a", "a", "a"], ["a", "b", "c"]], ids=["one_host", "three_hosts"])
def test_attempts_that_are_given_up_leave_nothing_behind(
    ranks: Ranks, backend: Backend, host_ids: list[str]
) -> None:
    before: list[tuple[int, int, int]] = []
    for attempt in range(WARM_UP + 10):
        requests = ranks.requests([0, 1, 2], backend=backend, host_ids=host_ids)
        for index in (0, 1):
            ranks.start(give_up_joining, requests[index], on=[index])
        assert ranks.results(on=[0, 1]) == [None, None]
        if attempt == WARM_UP - 1:
            before = ranks.call(resources, on=[0, 1])
    after = ranks.call(resources, on=[0, 1])
    for (fds, threads, _), (fds_after, threads_after, _) in zip(before, after, strict=True):
        assert fds_after <= fds
        assert threads_after <= threads + 2  # gRPC's pool starts and ends some; ten attempts would leave ten
    assert ours_in_dev_shm() == []


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_new_process_takes_the_place_of_a_killed_one(ranks: Ranks, backend: Backend) -> None:
    members = [0, 1, 2]
    for _ in range(4):
        ranks.form(backend, members)
        assert ranks.call(sum_of_ones, on=members) == [3.0] * 3
        ranks.kill(members.pop(0), signal.SIGKILL)
        members.append(ranks.add())
    assert ours_in_dev_shm() == []


def sum_of_ones(rank: Rank) -> float:
    return float(rank.handler.all_reduce(torch.ones(40_000))[-1])


def pretend_no_library(rank: Rank) -> None:
    segment.shared_memory_available = lambda: False  # type: ignore[attr-defined]


def refuse_anonymous_files(rank: Rank) -> None:
    """As a sandbox does that does not know the system call."""

    def memfd_create(name: str, flags: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    os.memfd_create = memfd_create


def refuse_to_open(rank: Rank) -> None:
    """As for a process that may not look at another one's descriptors, and has a /dev/shm of its own."""

    def refuse(store: object, where: str, rank: int, layout: object) -> None:
        raise PermissionError(13, "Permission denied")

    segment._open = refuse  # type: ignore[assignment]


def channel_type(rank: Rank) -> str:
    return type(rank.channel).__name__


@needs_native_library
@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_rank_without_the_library_brings_all_to_gloo(ranks: Ranks, who: int) -> None:
    ranks.call(pretend_no_library, on=[who])
    assert ranks.form(SHARED_MEMORY) == ["gloo"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3
    assert ranks.call(channel_type) == [TcpStepChannel.__name__] * 3


@needs_native_library
def test_without_anonymous_files_a_named_one_is_used_and_leaves_no_name(ranks: Ranks) -> None:
    ranks.call(refuse_anonymous_files, on=[0])
    assert ranks.form(SHARED_MEMORY) == ["shared_memory"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3
    assert ours_in_dev_shm() == []


def fill_dev_shm(rank: Rank) -> None:
    """As in a container, where it has 64 MiB: what is not reserved would end in a SIGBUS."""

    def posix_fallocate(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.posix_fallocate = posix_fallocate


@needs_native_library
def test_without_room_for_a_named_file_all_use_gloo(ranks: Ranks) -> None:
    ranks.call(refuse_anonymous_files, on=[0])
    ranks.call(fill_dev_shm, on=[0])
    assert ranks.form(SHARED_MEMORY) == ["gloo"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3
    assert ours_in_dev_shm() == []


@needs_native_library
def test_a_rank_that_can_not_open_the_segment_brings_all_to_gloo(ranks: Ranks) -> None:
    ranks.call(refuse_to_open, on=[1])
    assert ranks.form(SHARED_MEMORY) == ["gloo"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3
    assert ours_in_dev_shm() == []


def test_ranks_on_several_hosts_use_gloo_and_tcp(ranks: Ranks) -> None:
    assert ranks.form(SHARED_MEMORY, host_ids=["a", "a", "b"]) == ["gloo"] * 3
    assert ranks.call(channel_type) == [TcpStepChannel.__name__] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3


def test_asking_for_gloo_on_one_host_gets_gloo(ranks: Ranks) -> None:
    assert ranks.form(GLOO) == ["gloo"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3


def test_nccl_without_a_gpu_falls_back_for_all(ranks: Ranks) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from ryzanstein.v1 import shard_worker_pb2

    assert ranks.form(shard_worker_pb2.BACKEND_NCCL) == ["gloo"] * 3
    assert ranks.call(sum_of_ones) == [3.0] * 3


def test_joining_again_leaves_the_old_group(ranks: Ranks) -> None:
    ranks.form(GLOO)
    ranks.form(GLOO)
    assert ranks.call(sum_of_ones) == [3.0] * 3
    ranks.form(GLOO, members=[2, 0])
    assert ranks.call(sum_of_ones, on=[0, 2]) == [2.0] * 2


def listening_addresses(rank: Rank) -> set[str]:
    addresses = set()
    for fd in socket_inodes().values():
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                addresses.add(copy.getsockname()[0])
    return addresses


def test_a_group_listens_on_its_own_address_only(ranks: Ranks) -> None:
    ranks.form(GLOO, host_ids=["a", "b", "c"])
    assert ranks.call(listening_addresses) == [{"127.0.0.1"}] * 3
