"""What all handlers share, and those that need no other process."""

from __future__ import annotations

import pickle

import pytest
import torch

from ryzanstein_shard_worker.communication import (
    CommunicationError,
    CommunicationProfiler,
    RebindableHandler,
    SingleHandler,
    UnboundHandler,
)
from ryzanstein_shard_worker.communication.sums import ordered_sum


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_error_names_everything_and_survives_pickling() -> None:
    error = CommunicationError(rank=1, peer=3, operation="all_reduce", sequence=17, reason="no answer")
    assert str(error) == "rank 1: all_reduce #17 failed (peer rank 3): no answer"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.rank, copy.peer, copy.operation, copy.sequence, copy.reason) == (
        1,
        3,
        "all_reduce",
        17,
        "no answer",
    )
    nobody = CommunicationError(rank=1, peer=None, operation="barrier", sequence=2, reason="aborted")
    assert str(nobody) == "rank 1: barrier #2 failed: aborted"


def test_a_group_of_one_changes_nothing_and_counts() -> None:
    handler = SingleHandler()
    tensor = torch.arange(6.0).view(2, 3)
    assert handler.all_reduce(tensor) is tensor
    assert torch.equal(tensor, torch.arange(6.0).view(2, 3))
    assert torch.equal(handler.all_gather(tensor), tensor[None])
    assert torch.equal(handler.reduce_scatter(tensor[None]), tensor)
    assert handler.broadcast(tensor, 0) is tensor
    handler.barrier()
    assert handler.last == ("barrier", 5)
    handler.check()


def test_a_group_of_one_has_nobody_to_send_to() -> None:
    with pytest.raises(ValueError, match="can't exchange tensors with itself"):
        SingleHandler().send(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="no rank 1 in a group of 1"):
        SingleHandler().receive(torch.zeros(1), 1)


def test_parts_for_another_number_of_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the first dimension of .* must be 1"):
        SingleHandler().reduce_scatter(torch.zeros(2, 3))


def test_after_an_abort_every_operation_fails_with_its_reason() -> None:
    handler = SingleHandler()
    handler.abort("the epoch is over")
    handler.abort("a later one")
    with pytest.raises(CommunicationError, match="aborted: the epoch is over"):
        handler.barrier()
    with pytest.raises(CommunicationError):
        handler.check()


def test_a_closed_group_says_so() -> None:
    handler = SingleHandler()
    handler.close()
    with pytest.raises(CommunicationError, match="the group is closed"):
        handler.barrier()


def test_a_rank_outside_of_its_group_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is outside of a group of 2"):
        UnboundHandler(2, 2)


def test_layers_keep_their_handler_while_groups_come_and_go() -> None:
    place = RebindableHandler(0, 1)
    with pytest.raises(CommunicationError, match="in no group"):
        place.barrier()
    group = SingleHandler()
    place.bind(group)
    place.barrier()
    assert (place.backend, place.last, group.last) == ("single", ("barrier", 1), ("barrier", 1))
    place.check()
    place.unbind()
    assert place.backend == "none"
    with pytest.raises(CommunicationError, match="in no group"):
        place.all_reduce(torch.zeros(1))
    assert group.last == ("barrier", 1)


def test_layers_refuse_a_group_they_were_not_cut_for() -> None:
    with pytest.raises(ValueError, match=r"layers of rank 1 of 2 can't use .* rank 0 of 1"):
        RebindableHandler(1, 2).bind(SingleHandler())


def test_the_profiler_counts_operations_bytes_and_seconds() -> None:
    clock = Clock()

    class Slow(SingleHandler):
        def _all_reduce(self, tensor: torch.Tensor) -> None:
            clock.now += 0.25

        def _barrier(self) -> None:
            clock.now += 0.5

    profiler = CommunicationProfiler(Slow(), clock=clock)
    profiler.all_reduce(torch.zeros(10, dtype=torch.bfloat16))
    profiler.all_reduce(torch.zeros(4))
    profiler.barrier()
    totals = profiler.totals()
    assert (totals["all_reduce"].count, totals["all_reduce"].bytes, totals["all_reduce"].seconds) == (
        2,
        36,
        0.5,
    )
    assert (totals["barrier"].count, totals["barrier"].bytes, totals["barrier"].seconds) == (1, 0, 0.5)
    assert profiler.seconds == 1.0
    assert profiler.last == ("barrier", 3)
    assert (profiler.rank, profiler.world_size, profiler.backend) == (0, 1, "single")


def test_the_profiler_knows_communications_share_of_the_steps() -> None:
    clock = Clock()

    class Slow(SingleHandler):
        def _barrier(self) -> None:
            clock.now += 1.0

    profiler = CommunicationProfiler(Slow(), clock=clock)
    assert profiler.ratio == 0.0
    profiler.barrier()  # outside of a step
    assert profiler.ratio == 0.0
    profiler.step_started()
    profiler.barrier()
    clock.now += 3.0
    profiler.step_finished()
    assert profiler.ratio == 0.25
    for _ in range(200):
        profiler.step_started()
        profiler.barrier()
        clock.now += 1.0
        profiler.step_finished()
    assert profiler.ratio == pytest.approx(0.5, abs=0.01)
    profiler.step_finished()  # without a beginning
    assert profiler.ratio == pytest.approx(0.5, abs=0.01)


def test_every_operation_of_the_profiler_reaches_its_handler() -> None:
    profiler = CommunicationProfiler(SingleHandler())
    tensor = torch.ones(1, 3)
    assert profiler.broadcast(tensor, 0) is tensor
    assert torch.equal(profiler.all_gather(tensor), tensor[None])
    assert torch.equal(profiler.reduce_scatter(tensor), tensor[0])
    profiler.check()
    with pytest.raises(ValueError, match="itself"):
        profiler.send(tensor, 0)
    with pytest.raises(ValueError, match="itself"):
        profiler.receive(tensor, 0)
    assert set(profiler.totals()) == {"broadcast", "all_gather", "reduce_scatter"}
    profiler.abort("enough")
    with pytest.raises(CommunicationError, match="aborted: enough"):
        profiler.barrier()
    profiler.close()


def test_the_sum_is_in_rank_order_and_rounds_once() -> None:
    rows = torch.tensor([[1e8], [1.0], [-1e8]])
    out = torch.empty(1)
    ordered_sum(rows, out)
    assert out.item() == 0.0  # (1e8 + 1) - 1e8; another order would give 1
    halves = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    rounded = torch.empty(1, dtype=torch.bfloat16)
    ordered_sum(halves, rounded)
    assert rounded.item() == 258.0  # rounding after every addition would stay at 256
    ordered_sum(halves, halves[0])
    assert halves[0].item() == 258.0
