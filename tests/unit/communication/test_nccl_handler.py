"""The NCCL handler: its operations over another of torch's process groups, its watch with a clock of its own, and
the real thing where there are GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch._C._distributed_c10d import HashStore, ProcessGroupGloo

from ryzanstein_shard_worker.communication import CommunicationError, LastOperation
from ryzanstein_shard_worker.communication.launch_watch import LaunchWatch
from ryzanstein_shard_worker.communication.nccl import NcclHandler
from ryzanstein_shard_worker.communication.nccl_group import why_no_nccl
from ryzanstein_shard_worker.communication.sums import ordered_sum


class Event:
    """A point that a device has not reached yet."""

    def __init__(self) -> None:
        self.reached = False

    def query(self) -> bool:
        return self.reached


def run_ranks(world: int, check: Callable[[NcclHandler], None], *, reproducible: bool) -> None:
    """Each rank a thread; torch's gloo group takes the same calls as its NCCL group."""
    store = HashStore()
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        group = ProcessGroupGloo(store, rank, world, options)
        handler = NcclHandler(group, rank=rank, world_size=world, timeout_s=10, reproducible=reproducible)
        try:
            check(handler)
            handler.barrier()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)
        finally:
            handler.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def rows_of_all(world: int, *shape: int) -> torch.Tensor:
    return torch.randn((world, *shape), generator=torch.Generator().manual_seed(world)) * 100


def check_operations(handler: NcclHandler) -> None:
    world, rank = handler.world_size, handler.rank
    rows = rows_of_all(world, 33)
    expected = torch.empty(33)
    ordered_sum(rows, expected)
    tensor = rows[rank].clone()
    assert handler.all_reduce(tensor) is tensor
    torch.testing.assert_close(tensor, expected)
    if handler._reproducible:
        assert torch.equal(tensor, expected)
    assert torch.equal(handler.all_gather(rows[rank]), rows)
    parts = rows_of_all(world, world, 5)
    torch.testing.assert_close(handler.reduce_scatter(parts[rank]), parts.sum(0)[rank])
    tensor = rows[rank].clone()
    handler.broadcast(tensor, world - 1)
    assert torch.equal(tensor, rows[world - 1])
    if rank == 0:
        handler.send(rows[0], 1)
    elif rank == 1:
        assert torch.equal(handler.receive(torch.empty(33), 0), rows[0])
    handler.check()


@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_operations_come_out_right(world: int, reproducible: bool) -> None:
    run_ranks(world, check_operations, reproducible=reproducible)


@pytest.mark.parametrize("reproducible", [True, False])
def test_nan_in_a_sum_is_found_by_the_check_after_the_step_and_traced_to_its_rank(reproducible: bool) -> None:
    def check(handler: NcclHandler) -> None:
        for step in range(2):
            tensor = torch.ones(5)
            handler.all_reduce(tensor)
            if handler.rank == 1 and step == 1:
                tensor[3] = float("nan")
            handler.all_reduce(tensor)
            handler.all_reduce(tensor)  # of which every rank's part is bad
            handler.settle()
            if step == 0:
                handler.check()
        with pytest.raises(CommunicationError, match="what rank 1 gave to the sum holds NaN") as caught:
            handler.check()
        assert caught.value.peer == 1

    with pytest.raises(AssertionError, match="NaN"):  # of the barrier at the end
        run_ranks(3, check, reproducible=reproducible)


def test_an_aborted_group_fails_every_later_operation_and_the_check() -> None:
    def check(handler: NcclHandler) -> None:
        handler.barrier()
        handler.abort("the epoch is over")
        with pytest.raises(CommunicationError, match="aborted: the epoch is over"):
            handler.check()
        with pytest.raises(CommunicationError, match="aborted: the epoch is over"):
            handler.all_reduce(torch.zeros(2))

    with pytest.raises(AssertionError, match="the epoch is over"):  # of the barrier at the end
        run_ranks(2, check, reproducible=False)


class FailingDevice:
    """A process group on a device that has failed."""

    def broadcast(self, tensors: list[torch.Tensor], options: object) -> None:
        raise torch.AcceleratorError("uncorrectable ECC error encountered\nand advice")

    def abort(self) -> None: ...


def test_a_device_that_fails_is_not_told_as_a_failure_of_the_group() -> None:
    handler = NcclHandler(FailingDevice(), rank=0, world_size=2, timeout_s=10, reproducible=True)
    with pytest.raises(torch.AcceleratorError, match="ECC"):
        handler.broadcast(torch.zeros(1), 0)
    with pytest.raises(CommunicationError, match=r"the device reports: uncorrectable ECC error encountered$"):
        handler.check()
    handler.close()


def test_a_group_that_is_closed_can_be_aborted_and_closed_again() -> None:
    """An abort comes from another thread, and may be late."""
    handler = NcclHandler(FailingDevice(), rank=0, world_size=2, timeout_s=10, reproducible=True)
    handler.close()
    handler.abort("too late")
    handler.close()
    with pytest.raises(CommunicationError, match="the group is closed"):
        handler.barrier()


def test_the_watch_notices_an_operation_that_the_device_does_not_get_past() -> None:
    events: list[Event] = []

    def record() -> Event:
        events.append(Event())
        return events[-1]

    watch = LaunchWatch(record, timeout_s=2.0)
    assert watch.overdue(0.0) is None
    watch.launched(LastOperation("all_reduce", 1), 0.0)
    watch.launched(LastOperation("all_reduce", 2), 0.5)
    assert len(events) == 1  # one is out at a time
    assert watch.overdue(1.9) is None
    events[0].reached = True
    assert watch.overdue(5.0) is None
    watch.launched(LastOperation("broadcast", 3), 6.0)
    assert watch.overdue(7.9) is None
    assert watch.overdue(8.0) == ("broadcast", 3)


def test_the_watch_waits_for_nothing_while_a_graph_is_captured() -> None:
    watch = LaunchWatch(lambda: None, timeout_s=2.0)
    watch.launched(LastOperation("all_reduce", 1), 0.0)
    assert watch.overdue(100.0) is None


def test_a_host_without_gpus_says_why_there_is_no_nccl() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert why_no_nccl() == "no CUDA device"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_form_a_group_and_sum() -> None:
    """Each rank a process of its own, as NCCL wants it."""
    from ryzanstein.v1 import shard_worker_pb2
    from tests.distributed.ranks import Ranks

    with Ranks(2) as ranks:
        assert ranks.form(shard_worker_pb2.BACKEND_NCCL, devices=["cuda:0", "cuda:1"]) == ["nccl"] * 2
        assert ranks.call(_sum_on_gpu) == [3.0, 3.0]


def _sum_on_gpu(rank: object) -> float:
    handler = rank.handler  # type: ignore[attr-defined]
    tensor = torch.full((1000,), float(handler.rank + 1), device=f"cuda:{handler.rank}")
    handler.all_reduce(tensor)
    torch.cuda.synchronize()
    handler.check()
    return float(tensor[0])
