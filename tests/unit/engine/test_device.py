"""What a worker takes of its device is bounded by the ledger."""

from __future__ import annotations

import pytest
import torch

from ryzanstein_shard_worker.device import bound_memory


@pytest.mark.parametrize(
    ("limit_bytes", "shares"),
    [(40, [0.5]), (80, [1.0]), (200, [1.0]), (0, [])],
    ids=["half", "all", "more than there is", "not bounded"],
)
def test_torch_may_hold_the_ledgers_share_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, limit_bytes: int, shares: list[float]
) -> None:
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: told.append(share)
    )
    bound_memory(torch.device("cuda:1"), limit_bytes)
    assert told == shares


def test_a_cpu_has_no_such_bound() -> None:
    bound_memory(torch.device("cpu"), 1)
    assert torch.zeros(1000).sum() == 0
