"""Every operation, on every backend that runs on CPUs, between real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.communication.sums import ordered_sum

from .ranks import CPU_BACKENDS, GLOO, SHARED_MEMORY, Rank, Ranks

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64)
#: One element, odd, around the size at which sums are spread, larger than a slot of the segment.
SIZES = (1, 7, 4099, 40_001, 150_007)


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with Ranks(request.param) as ranks:
        yield ranks


@pytest.fixture(params=CPU_BACKENDS)
def group(ranks: Ranks, request: pytest.FixtureRequest) -> Ranks:
    backends = ranks.form(request.param)
    names = {SHARED_MEMORY: "shared_memory", GLOO: "gloo"}
    alone = len(ranks.processes) == 1
    assert backends == ["single" if alone else names[request.param]] * len(ranks.processes)
    return ranks


def tensors_of_all(world: int, size: int, dtype: torch.dtype) -> Tensor:
    """[world, size]: the same on every rank; sums of floats depend on the order."""
    generator = torch.Generator().manual_seed(size * 100 + world)
    values = torch.randn((world, size), generator=generator, dtype=torch.float64) * 1000
    return values.to(dtype)


def sum_in_rank_order(rows: Tensor) -> Tensor:
    out = torch.empty_like(rows[0])
    ordered_sum(rows, out)
    return out


def check_all_reduce(rank: Rank) -> None:
    handler = rank.handler
    for dtype in DTYPES:
        for size in SIZES:
            rows = tensors_of_all(handler.world_size, size, dtype)
            tensor = rows[handler.rank].clone()
            assert handler.all_reduce(tensor) is tensor
            assert torch.equal(tensor, sum_in_rank_order(rows)), (dtype, size)


def check_row_alone_and_in_a_batch(rank: Rank) -> None:
    handler = rank.handler
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = tensors_of_all(handler.world_size, 64 * 1280, dtype).view(-1, 64, 1280)
        batch = handler.all_reduce(rows[handler.rank].clone())
        for row in (0, 17, 63):
            alone = handler.all_reduce(rows[handler.rank, row].clone())
            assert torch.equal(alone, batch[row]), (dtype, row)


def check_special_values(rank: Rank) -> None:
    """Denormals, ties of rounding and overflow come out as in torch."""
    handler = rank.handler
    values = [
        0.0,
        -0.0,
        6e-8,
        -3e-8,
        65504.0,
        1.0,
        2049.0,
        3.3e38,
        1e-40,
    ]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        grid = torch.tensor([[a, b] for a in values for b in values], dtype=torch.float32).to(
            dtype
        )  # [81, 2]
        grid = grid[torch.isfinite(grid).all(dim=1)]  # 3.3e38 is too much for float16
        rows = grid.t().repeat((handler.world_size + 1) // 2, 1)[: handler.world_size].contiguous()
        expected = sum_in_rank_order(rows)
        tensor = handler.all_reduce(rows[handler.rank].clone())
        assert torch.equal(tensor.isnan(), expected.isnan())
        assert torch.equal(tensor.nan_to_num(0.0), expected.nan_to_num(0.0)), dtype
        assert torch.equal(tensor.signbit()[~tensor.isnan()], expected.signbit()[~expected.isnan()])


def check_all_gather(rank: Rank) -> None:
    handler = rank.handler
    for dtype in (*DTYPES, torch.uint8, torch.bool):
        for size in SIZES:
            rows = tensors_of_all(handler.world_size, size, torch.float32).to(dtype)
            gathered = handler.all_gather(rows[handler.rank])
            assert gathered.dtype == dtype
            assert torch.equal(gathered, rows), (dtype, size)


def check_reduce_scatter(rank: Rank) -> None:
    handler = rank.handler
    world = handler.world_size
    for dtype in DTYPES:
        for size in (1, 5, 1000, 100_003):
            rows = tensors_of_all(world, world * size, dtype).view(world, world, size)
            part = handler.reduce_scatter(rows[handler.rank])
            assert torch.equal(part, sum_in_rank_order(rows)[handler.rank]), (dtype, size)


def check_broadcast(rank: Rank) -> None:
    handler = rank.handler
    for source in range(handler.world_size):
        for size in SIZES:
            expected = tensors_of_all(handler.world_size, size, torch.bfloat16)[source]
            tensor = expected.clone() if handler.rank == source else torch.zeros_like(expected)
            assert handler.broadcast(tensor, source) is tensor
            assert torch.equal(tensor, expected)


def check_send_and_receive(rank: Rank) -> None:
    """Around the ring, both ways, several messages deep."""
    handler = rank.handler
    world = handler.world_size
    for size in SIZES:
        for step in range(1, world):
            to, source = (handler.rank + step) % world, (handler.rank - step) % world
            expected = tensors_of_all(world, size, torch.float32)[source]
            tensor = tensors_of_all(world, size, torch.float32)[handler.rank]
            received = torch.empty_like(expected)
            if handler.rank < to:
                handler.send(tensor, to)
                handler.receive(received, source)
            else:
                handler.receive(received, source)
                handler.send(tensor, to)
            assert torch.equal(received, expected)


def check_views(rank: Rank) -> None:
    """Tensors that are not dense in memory."""
    handler = rank.handler
    rows = tensors_of_all(handler.world_size, 600, torch.float32).view(-1, 20, 30)
    transposed = rows[handler.rank].clone().t()
    assert handler.all_reduce(transposed) is transposed
    assert torch.equal(transposed, sum_in_rank_order(rows).t())
    assert torch.equal(handler.all_gather(rows[handler.rank].t()), rows.transpose(1, 2))
    every_other = torch.full((20,), float(handler.rank))[::2]
    handler.broadcast(every_other, 0)
    assert torch.equal(every_other, torch.zeros(10))


def check_empty(rank: Rank) -> None:
    handler = rank.handler
    assert handler.all_reduce(torch.empty(0, 5)).shape == (0, 5)
    assert handler.all_gather(torch.empty(3, 0)).shape == (handler.world_size, 3, 0)


def check_numbers(rank: Rank) -> None:
    before = rank.handler.last.sequence
    rank.handler.barrier()
    assert rank.handler.last == ("barrier", before + 1)
    with pytest.raises(ValueError, match="can't sum"):
        rank.handler.all_reduce(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no rank 99"):
        rank.handler.broadcast(torch.zeros(3), 99)
    rank.handler.barrier()
    assert rank.handler.last == ("barrier", before + 4)


@pytest.mark.parametrize(
    "check",
    [
        check_all_reduce,
        check_row_alone_and_in_a_batch,
        check_special_values,
        check_all_gather,
        check_reduce_scatter,
        check_broadcast,
        check_send_and_receive,
        check_views,
        check_empty,
        check_numbers,
    ],
)
def test_every_rank_gets_the_right_bits(group: Ranks, check: Any) -> None:
    group.call(check)
