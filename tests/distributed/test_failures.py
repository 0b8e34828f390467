"""A rank that dies, hangs, leaves or never comes: the others are freed, and told who it was."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from ryzanstein_shard_worker.communication import CommunicationError

from .ranks import CPU_BACKENDS, GLOO, SHARED_MEMORY, Backend, Rank, Ranks, failure, needs_native_library

#: A generous bound for "at once" on a machine whose processors are busy with something else.
SOON_S = 0.5

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks(3) as ranks:
        yield ranks


def all_reduce(rank: Rank, size: int = 1000) -> float:
    """When it failed, or the sum's first element."""
    tensor = torch.ones(size)
    rank.handler.all_reduce(tensor)
    return float(tensor[0])


def fail_in_all_reduce(rank: Rank) -> tuple[float, CommunicationError]:
    with pytest.raises(CommunicationError) as caught:
        all_reduce(rank)
    return time.monotonic(), caught.value


def fail_in_receive(rank: Rank, timeout_s: float) -> tuple[float, CommunicationError]:
    with pytest.raises(CommunicationError) as caught:
        rank.channel.receive(timeout_s)
    return time.monotonic(), caught.value


def wait_until_blocked(ranks: Ranks, index: int) -> None:
    """Until the process sleeps in the kernel, in a wait of the operation."""
    stat = f"/proc/{ranks.processes[index].pid}/stat"
    deadline = time.monotonic() + 10
    asleep = 0
    while asleep < 20 and time.monotonic() < deadline:
        with open(stat) as file:  # noqa: PTH123
            asleep = asleep + 1 if file.read().rpartition(") ")[2][0] == "S" else 0
        time.sleep(0.005)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_rank_killed_in_a_collective_is_named_at_once(ranks: Ranks, backend: Backend) -> None:
    ranks.form(backend, timeout_s=20)
    ranks.start(fail_in_all_reduce, on=[0, 1])
    wait_until_blocked(ranks, 0)
    wait_until_blocked(ranks, 1)
    killed_at = ranks.kill(2)
    for rank, (failed_at, error) in enumerate(ranks.results(on=[0, 1])):
        assert failed_at - killed_at < SOON_S
        assert (error.rank, error.peer, error.operation, error.sequence) == (rank, 2, "all_reduce", 1)


def fail_with_a_bad_part(rank: Rank, culprit: int, operation: str) -> CommunicationError:
    """The second sum holds NaN of one rank, far from its beginning."""
    parts = torch.ones(rank.handler.world_size, 100_000)
    rank.handler.all_reduce(parts)
    if rank.handler.rank == culprit:
        parts[-1, 70_000] = float("nan")
    with pytest.raises(CommunicationError) as caught:
        getattr(rank.handler, operation)(parts)
    if rank.handler.rank == culprit:
        rank.group.close()  # as its engine does, with its reason
    return caught.value


@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_in_a_sum_is_traced_to_its_rank_and_nobody_gets_the_sum(
    ranks: Ranks, backend: Backend, culprit: int, operation: str
) -> None:
    ranks.form(backend, timeout_s=20)
    ranks.start(fail_with_a_bad_part, culprit, operation)
    errors = ranks.results()
    assert [(error.peer, error.operation, error.sequence) for error in errors] == [
        (culprit, operation, 2)
    ] * 3
    assert f"what rank {culprit} gave to the sum holds NaN or infinity" in errors[culprit].reason


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_rank_killed_while_all_are_idle_is_named_by_the_next_operation(
    ranks: Ranks, backend: Backend
) -> None:
    ranks.form(backend, timeout_s=20)
    ranks.call(all_reduce)
    ranks.kill(2)
    ranks.processes[2].join(10)
    started_at = time.monotonic()
    ranks.start(fail_in_all_reduce, on=[0, 1])
    for failed_at, error in ranks.results(on=[0, 1]):
        assert failed_at - started_at < SOON_S
        assert error.peer == 2


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_stopped_rank_is_named_when_the_timeout_is_over(ranks: Ranks, backend: Backend) -> None:
    ranks.form(backend, timeout_s=0.6)
    ranks.call(all_reduce)
    ranks.kill(2, signal.SIGSTOP)
    started_at = time.monotonic()
    ranks.start(fail_in_all_reduce, on=[0, 1])
    for failed_at, error in ranks.results(on=[0, 1]):
        assert 0.55 < failed_at - started_at < 0.6 + SOON_S
        assert error.peer == 2
        assert "no answer from rank 2 within 0.6 s" in error.reason


@needs_native_library
def test_the_rank_that_is_furthest_behind_is_named_not_the_one_that_waits_for_it(ranks: Ranks) -> None:
    ranks.form(SHARED_MEMORY, timeout_s=0.6)
    ranks.kill(1, signal.SIGSTOP)
    ranks.start(fail_in_all_reduce, on=[0, 2])
    assert {error.peer for _, error in ranks.results(on=[0, 2])} == {1}
    ranks.kill(1, signal.SIGCONT)
    # The one that was stopped finds a broken group, with the same story.
    ranks.start(fail_in_all_reduce, on=[1])
    ((_, error),) = ranks.results(on=[1])
    assert error.peer == 1
    assert "as rank" in error.reason


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_after_the_first_failure_every_operation_fails_at_once_with_its_reason(
    ranks: Ranks, backend: Backend
) -> None:
    ranks.form(backend, timeout_s=0.5)
    ranks.start(fail_in_all_reduce, on=[0])
    ((_, first),) = ranks.results(on=[0])
    started_at = time.monotonic()
    ranks.start(fail_in_all_reduce, on=[0])
    ((failed_at, second),) = ranks.results(on=[0])
    assert failed_at - started_at < 0.25
    assert (second.reason, second.peer, second.sequence) == (first.reason, first.peer, first.sequence + 1)


def abort_while_blocked(rank: Rank) -> tuple[float, CommunicationError]:
    """→ (how long after the abort, the error)."""
    aborted_at: list[float] = []

    def abort() -> None:
        time.sleep(0.3)
        aborted_at.append(time.monotonic())
        rank.manager.abort("the coordinator said so")

    thread = threading.Thread(target=abort)
    thread.start()
    failed_at, error = fail_in_all_reduce(rank)
    thread.join()
    return failed_at - aborted_at[0], error


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_abort_frees_a_blocked_operation_and_those_of_the_peers(ranks: Ranks, backend: Backend) -> None:
    ranks.form(backend, timeout_s=20)
    started_at = time.monotonic()
    ranks.start(abort_while_blocked, on=[0])
    ranks.start(fail_in_all_reduce, on=[1])
    ((delay_s, error),) = ranks.results(on=[0])
    assert delay_s < 0.1
    assert "aborted: the coordinator said so" in error.reason
    assert error.peer is None
    ((failed_at, error),) = ranks.results(on=[1])
    assert failed_at - started_at < 0.3 + SOON_S
    assert "rank 0" in error.reason


def abort_while_receiving(rank: Rank) -> float:
    aborted_at: list[float] = []

    def abort() -> None:
        time.sleep(0.3)
        aborted_at.append(time.monotonic())
        rank.manager.abort("enough")

    thread = threading.Thread(target=abort)
    thread.start()
    failed_at, error = fail_in_receive(rank, 20)
    thread.join()
    assert error.reason == "aborted: enough"
    return failed_at - aborted_at[0]


@pytest.mark.parametrize("host_ids", [["a", "a", "a"], ["a", "b", "c"]], ids=["one_host", "three_hosts"])
def test_abort_frees_a_rank_that_waits_for_the_leaders_plan(ranks: Ranks, host_ids: list[str]) -> None:
    ranks.form(SHARED_MEMORY, host_ids=host_ids)
    (delay_s,) = ranks.call(abort_while_receiving, on=[1])
    assert delay_s < 0.1


@pytest.mark.parametrize("host_ids", [["a", "a", "a"], ["a", "b", "c"]], ids=["one_host", "three_hosts"])
def test_ranks_that_wait_for_a_plan_notice_that_the_leader_is_dead(ranks: Ranks, host_ids: list[str]) -> None:
    ranks.form(SHARED_MEMORY, host_ids=host_ids)
    ranks.start(fail_in_receive, 20.0, on=[1, 2])
    wait_until_blocked(ranks, 1)
    wait_until_blocked(ranks, 2)
    killed_at = ranks.kill(0)
    for failed_at, error in ranks.results(on=[1, 2]):
        assert failed_at - killed_at < SOON_S
        assert (error.peer, error.operation) == (0, "step_channel.receive")


def join(rank: Rank, request: bytes) -> tuple[float, str]:
    try:
        rank.join(request)
    except CommunicationError as error:
        return time.monotonic(), error.reason
    return time.monotonic(), ""


def join_and_abort(rank: Rank, request: bytes) -> tuple[float, str]:
    aborted_at: list[float] = []

    def abort() -> None:
        time.sleep(0.4)
        aborted_at.append(time.monotonic())
        rank.manager.abort("too late")

    thread = threading.Thread(target=abort)
    thread.start()
    failed_at, reason = join(rank, request)
    thread.join()
    return failed_at - aborted_at[0], reason


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("host_ids", [["a", "a", "a"], ["a", "b", "c"]], ids=["one_host", "three_hosts"])
def test_abort_frees_ranks_that_wait_for_a_member_that_never_comes(
    ranks: Ranks, backend: Backend, host_ids: list[str]
) -> None:
    requests = ranks.requests([0, 1, 2], backend=backend, join_timeout_s=20, host_ids=host_ids)
    for index in (0, 1):
        ranks.start(join_and_abort, requests[index], on=[index])
    for delay_s, reason in ranks.results(on=[0, 1]):
        assert delay_s < 0.15
        assert reason
    assert ranks.form(backend) == ranks.form(backend)  # the same processes can join the next epoch


def test_the_coordinator_frees_all_by_giving_up_the_attempt(ranks: Ranks) -> None:
    requests = ranks.requests([0, 1, 2], backend=GLOO, join_timeout_s=20)
    for index in (0, 1):
        ranks.start(join, requests[index], on=[index])
    wait_until_blocked(ranks, 0)
    wait_until_blocked(ranks, 1)
    given_up_at = time.monotonic()
    ranks.close_attempt()
    for failed_at, reason in ranks.results(on=[0, 1]):
        assert failed_at - given_up_at < SOON_S
        assert "FAILED_PRECONDITION" in reason


def test_a_member_that_never_comes_ends_the_join_at_its_deadline(ranks: Ranks) -> None:
    requests = ranks.requests([0, 1, 2], backend=GLOO, join_timeout_s=0.5)
    started_at = time.monotonic()
    for index in (0, 1):
        ranks.start(join, requests[index], on=[index])
    for failed_at, reason in ranks.results(on=[0, 1]):
        assert 0.45 < failed_at - started_at < 0.5 + SOON_S
        assert reason


def test_a_rank_of_an_old_epoch_is_refused(ranks: Ranks) -> None:
    old = ranks.requests([0, 1, 2], backend=GLOO)
    ranks.requests([0, 1, 2], backend=GLOO)
    ((_, reason),) = ranks.call(join, old[0], on=[0])
    assert "epoch 1 is over; the current epoch is 2" in reason


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_stopped_rank_that_wakes_up_harms_nobody_in_the_next_epoch(ranks: Ranks, backend: Backend) -> None:
    ranks.form(backend, timeout_s=0.5)
    ranks.kill(2, signal.SIGSTOP)
    ranks.start(fail_in_all_reduce, on=[0, 1])
    ranks.results(on=[0, 1])
    ranks.start(fail_in_all_reduce, on=[2])
    ranks.form(backend, members=[0, 1])
    ranks.kill(2, signal.SIGCONT)
    assert ranks.call(all_reduce, on=[0, 1]) == [2.0, 2.0]
    ((_, error),) = ranks.results(on=[2])
    assert failure(error).rank == 2
    assert ranks.call(all_reduce, on=[0, 1]) == [2.0, 2.0]


def barrier_instead(rank: Rank) -> tuple[float, CommunicationError]:
    with pytest.raises(CommunicationError) as caught:
        rank.handler.barrier()
    return time.monotonic(), caught.value


@needs_native_library
def test_ranks_in_different_operations_say_so_instead_of_mixing_up_bytes(ranks: Ranks) -> None:
    ranks.form(SHARED_MEMORY)
    ranks.start(fail_in_all_reduce, on=[0, 1])
    ranks.start(barrier_instead, on=[2])
    errors = [error for _, error in ranks.results()]
    assert all("is in another operation" in error.reason for error in errors), errors
