"""Two processes that share one GPU talk over gloo: NCCL refuses two ranks on one device."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ryzanstein_shard_worker.communication import CommunicationError
from ryzanstein_shard_worker.communication.sums import ordered_sum
from tests.checkpoints import Checkpoints, make_model
from tests.distributed.ranks import GLOO, Rank, Ranks, failure

from .loading import load_on, logits_on

DEVICE = torch.device("cuda:0")
TOKEN_IDS = torch.randint(0, 331, (29,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture
def group(ranks: Ranks) -> Ranks:
    assert form(ranks) == ["gloo", "gloo"]
    return ranks


def form(ranks: Ranks, members: list[int] | None = None) -> list[str]:
    return ranks.form(GLOO, members, devices=["cuda:0"] * 2, timeout_s=30.0, join_timeout_s=60.0)


def rows_of_all(world: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (100 * torch.randn((world, 40_001), generator=generator)).to(dtype)


def check_operations(rank: Rank) -> None:
    """On CUDA tensors, against what follows from all ranks' numbers."""
    handler = rank.handler
    other = 1 - handler.rank
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        rows = rows_of_all(handler.world_size, dtype)
        mine = rows[handler.rank].to(DEVICE)
        expected = torch.empty_like(rows[0])
        ordered_sum(rows, expected)
        tensor = mine.clone()
        assert handler.all_reduce(tensor) is tensor
        assert torch.equal(tensor.cpu(), expected), dtype
        gathered = handler.all_gather(mine)
        assert gathered.device == DEVICE
        assert torch.equal(gathered.cpu(), rows)
        part = handler.reduce_scatter(mine[:40_000].view(2, -1))
        assert torch.equal(part.cpu(), expected[:40_000].view(2, -1)[handler.rank])
        tensor = mine.clone()
        handler.broadcast(tensor, 1)
        assert torch.equal(tensor.cpu(), rows[1])
        received = torch.empty_like(mine)
        if handler.rank == 0:
            handler.send(mine, other)
            handler.receive(received, other)
        else:
            handler.receive(received, other)
            handler.send(mine, other)
        assert torch.equal(received.cpu(), rows[other])
    handler.barrier()
    handler.check()


def logits_in_process(rank: Rank, directory: Path) -> Any:
    model = load_on(DEVICE, directory, torch.float32, rank.handler)
    return logits_on(DEVICE, model, TOKEN_IDS).numpy()


def reduce_until_it_fails(rank: Rank) -> None:
    tensor = torch.ones(1000, device=DEVICE)
    while True:
        rank.handler.all_reduce(tensor)


def sum_of_ranks(rank: Rank) -> float:
    tensor = torch.full((1000,), float(rank.handler.rank + 1), device=DEVICE)
    return float(rank.handler.all_reduce(tensor)[0])


def test_every_operation_gives_the_right_bits(group: Ranks) -> None:
    group.start(check_operations)
    assert group.results(timeout_s=90) == [None, None]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_over_two_ranks_gives_the_logits_of_transformers(
    group: Ranks, checkpoints: Checkpoints, family: str
) -> None:
    with torch.inference_mode():
        expected = make_model(family)(TOKEN_IDS[None]).logits[0].numpy()
    group.start(logits_in_process, checkpoints(family))
    first, other = group.results(timeout_s=90)
    assert np.array_equal(first, other)
    assert np.abs(first - expected).max() < 1e-4


def test_a_killed_rank_is_noticed_at_once_and_a_new_process_takes_its_place() -> None:
    with Ranks(2) as ranks:
        form(ranks)
        assert ranks.call(sum_of_ranks) == [3.0, 3.0]
        ranks.start(reduce_until_it_fails)
        time.sleep(0.2)  # any moment will do: it has to be in the middle of an operation or between two
        killed_at = ranks.kill(1, signal.SIGKILL)
        error = failure(ranks.results(on=[0])[0])
        assert isinstance(error, CommunicationError)
        assert error.peer == 1
        assert time.monotonic() - killed_at < 2.0
        replacement = ranks.add()
        assert form(ranks, [0, replacement]) == ["gloo", "gloo"]
        ranks.start(sum_of_ranks, on=[0, replacement])
        assert ranks.results(on=[0, replacement], timeout_s=60) == [3.0, 3.0]
