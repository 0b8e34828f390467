"""The real NCCL, in a group of one: operations, abort, and the next epoch's group in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from ryzanstein_shard_worker.communication import CommunicationError
from ryzanstein_shard_worker.communication.nccl import NcclHandler
from ryzanstein_shard_worker.communication.nccl_group import form_nccl_group, why_no_nccl

Form = Callable[[], NcclHandler]


@pytest.fixture(params=[True, False], ids=["reproducible", "nccl's order"])
def form(request: pytest.FixtureRequest, cuda: torch.device) -> Iterator[Form]:
    """Forms a group over a store of its own, as every epoch has one; the group before it is left first."""
    open_handlers: list[NcclHandler] = []

    def form() -> NcclHandler:
        while open_handlers:
            open_handlers.pop().close()
        handler = form_nccl_group(
            HashStore(),
            rank=0,
            world_size=1,
            device=cuda,
            timeout_s=10.0,
            reproducible=request.param,
        )
        open_handlers.append(handler)
        return handler

    yield form
    while open_handlers:
        open_handlers.pop().close()


def numbers(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)


def test_this_machine_has_nccl() -> None:
    assert why_no_nccl() == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_every_collective_gives_back_what_one_rank_has(
    form: Form, cuda: torch.device, dtype: torch.dtype
) -> None:
    handler = form()
    given = (100 * numbers(cuda, 33, 7)).to(dtype)
    tensor = given.clone()
    assert handler.all_reduce(tensor) is tensor
    assert torch.equal(tensor, given)
    assert torch.equal(handler.all_gather(given), given[None])
    assert torch.equal(handler.reduce_scatter(given[None].contiguous()), given)
    assert handler.broadcast(tensor, 0) is tensor
    assert torch.equal(tensor, given)
    handler.barrier()
    torch.cuda.synchronize()
    handler.check()


def test_a_tensor_that_is_not_dense_is_reduced_in_place(form: Form, cuda: torch.device) -> None:
    handler = form()
    transposed = numbers(cuda, 20, 30).t()
    expected = transposed.clone()
    assert handler.all_reduce(transposed) is transposed
    assert torch.equal(transposed, expected)


def test_there_is_nobody_to_send_to(form: Form, cuda: torch.device) -> None:
    with pytest.raises(ValueError, match="can't exchange tensors with itself"):
        form().send(numbers(cuda, 3), 0)


def test_an_aborted_group_fails_everything_that_follows(form: Form, cuda: torch.device) -> None:
    handler = form()
    started_at = time.monotonic()
    handler.abort("the epoch is over")
    assert time.monotonic() - started_at < 1.0
    with pytest.raises(CommunicationError, match="the epoch is over"):
        handler.all_reduce(numbers(cuda, 3))
    with pytest.raises(CommunicationError, match="the epoch is over"):
        handler.check()


def test_the_next_epoch_forms_in_the_same_process_after_an_abort(form: Form, cuda: torch.device) -> None:
    given = numbers(cuda, 1000)
    for epoch in range(3):
        handler = form()
        assert torch.equal(handler.all_reduce(given.clone()), given), epoch
        handler.abort("a rank died")
    last = form()
    last.barrier()
    assert torch.equal(last.all_reduce(given.clone()), given)


def test_a_collective_can_be_captured_into_a_graph(form: Form, cuda: torch.device) -> None:
    handler = form()
    tensor = numbers(cuda, 64)
    handler.all_reduce(tensor)  # the first one sets the communicator up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    given = torch.empty_like(tensor)
    with torch.cuda.graph(graph):
        doubled = handler.all_reduce(2 * given)
    for factor in (1.0, 3.0):
        given.copy_(factor * tensor)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(doubled, 2 * factor * tensor)
    handler.check()
    del graph, doubled  # a graph that captured the communicator would hold its abort up
