"""Steps that only decode, from graphs: the tokens of steps that are launched one by one, in every epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore, ProcessGroupGloo

from ryzanstein_shard_worker.communication import CommunicationHandler, RebindableHandler, SingleHandler
from ryzanstein_shard_worker.communication.nccl import NcclHandler
from ryzanstein_shard_worker.gpu.graph_driver import Captured, RepeatingDriver

from .steps import PATIENCE, Shard, generate

COUNT = 10
NONE: tuple[int, ...] = ()
PROMPTS = [[1, 5, 9, 30], [1, 7], [1, 40, 41, 42, 43, 44, 45], [1, 100, 3]]


class ShortOfMemory(RepeatingDriver):
    """Has room for so many graphs."""

    def __init__(self, room: int) -> None:
        self._room = room

    def capture(self, run: Callable[[], Tensor]) -> Captured:
        if self._room == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self._room -= 1
        return super().capture(run)


def nccl_ranks(check: Callable[[NcclHandler], None]) -> None:
    """Two ranks in threads; torch's gloo group takes the calls of its NCCL group."""
    store = HashStore()
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        group = ProcessGroupGloo(store, rank, 2, options)
        handler = NcclHandler(group, rank=rank, world_size=2, timeout_s=20, reproducible=True)
        try:
            check(handler)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)
        finally:
            handler.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """By the way of a CPU, one step at a time."""
    handler = SingleHandler()
    return generate(handler, Shard(handler, None).runner, PROMPTS, COUNT)


@torch.inference_mode()
def test_tokens_are_the_same_with_graphs_and_without(expected: list[list[int]]) -> None:
    handler = SingleHandler()
    shard = Shard(handler, (1, 2, 4, 8))
    assert generate(handler, shard.runner, PROMPTS, COUNT) == expected  # no group was entered: no graphs
    assert shard.graphs.captured == NONE
    shard.runner.enter(handler)
    assert shard.graphs.captured == (8, 4, 2, 1)
    assert shard.graphs.capture_s > 0
    assert generate(handler, shard.runner, PROMPTS, COUNT) == expected
    assert handler.last.operation == "replay"


def test_a_rank_that_is_alone_keeps_its_graphs_from_epoch_to_epoch() -> None:
    handler = SingleHandler()
    shard = Shard(handler, (2,))
    shard.runner.enter(handler)
    shard.graphs.leave()
    assert shard.graphs.captured == (2,)
    shard.runner.enter(SingleHandler())
    assert shard.graphs.capture_s == 0.0


def test_a_size_that_memory_does_not_hold_is_launched_one_by_one(expected: list[list[int]]) -> None:
    handler = SingleHandler()
    shard = Shard(handler, (1, 2, 4), ShortOfMemory(1))
    shard.runner.enter(handler)
    assert shard.graphs.captured == (4,)
    assert generate(handler, shard.runner, PROMPTS, COUNT) == expected


def test_a_batch_above_the_largest_size_is_launched_one_by_one(expected: list[list[int]]) -> None:
    handler = SingleHandler()
    shard = Shard(handler, (1, 2))
    shard.runner.enter(handler)
    assert generate(handler, shard.runner, PROMPTS, COUNT) == expected


def test_graphs_that_hold_a_communicator_go_with_its_epoch(expected: list[list[int]]) -> None:
    def check(handler: NcclHandler) -> None:
        layers = RebindableHandler(handler.rank, 2)
        layers.bind(handler)
        shard = Shard(layers, (4,))
        shard.runner.enter(layers)
        assert shard.graphs.captured == (4,)
        assert generate(layers, shard.runner, PROMPTS, COUNT) == expected
        shard.graphs.leave()
        assert shard.graphs.captured == NONE
        # The next epoch: streams wait, so nothing is captured until a size has been wanted for some steps.
        shard.runner.enter(layers)
        assert shard.graphs.captured == NONE
        generate(layers, shard.runner, PROMPTS[:1], PATIENCE)
        assert not shard.graphs.captured
        assert generate(layers, shard.runner, PROMPTS, COUNT) == expected
        assert list(shard.graphs.captured) == [4]
        assert generate(layers, shard.runner, PROMPTS, COUNT) == expected

    nccl_ranks(check)


def test_ranks_capture_at_once_only_if_all_of_them_are_new() -> None:
    def check(handler: NcclHandler) -> None:
        shard = Shard(handler, (2,))
        if handler.rank == 1:  # it has been in a group before, and goes on with its streams
            shard.graphs._served = True
        shard.runner.enter(handler)
        assert shard.graphs.captured == NONE

    nccl_ranks(check)


def test_a_group_whose_graphs_did_not_fit_goes_on_without_them(expected: list[list[int]]) -> None:
    """The rank leaves with what went wrong; its peers wait in a sum, and are told by the coordinator."""

    def check(handler: NcclHandler) -> None:
        shard = Shard(handler, (4, 2), ShortOfMemory(1))
        with pytest.raises(torch.OutOfMemoryError):
            shard.runner.enter(handler)
        shard.graphs.leave()
        shard.runner.enter(handler)
        assert shard.graphs.captured == NONE
        assert generate(handler, shard.runner, PROMPTS, COUNT) == expected

    nccl_ranks(check)


def test_what_a_replay_sums_is_looked_at_like_everything_else() -> None:
    """NaN in a rank's weights after the capture: the check after the step names the rank."""

    def check(handler: NcclHandler) -> None:
        shard = Shard(handler, (4,))
        shard.runner.enter(handler)
        if handler.rank == 1:
            for name, parameter in shard.model.named_parameters():
                if name == "layers.1.mlp.down.weight":
                    parameter.data.fill_(float("nan"))
        with pytest.raises(Exception, match="what rank 1 gave to the sum holds NaN"):
            generate(handler, shard.runner, PROMPTS, COUNT)

    nccl_ranks(check)


def test_operations_on_the_host_are_not_captured() -> None:
    class OnTheHost(SingleHandler):
        graphs = "none"  # type: ignore[assignment]

    handler: CommunicationHandler = OnTheHost()
    shard = Shard(handler, (1,))
    shard.runner.enter(handler)
    assert shard.graphs.captured == NONE
