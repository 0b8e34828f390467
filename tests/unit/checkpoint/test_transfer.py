"""Transfers: the way through buffers gives the same bits as the direct one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.model_plan import ModelError
from ryzanstein_shard_worker.checkpoint.transfer import (
    DirectTransfer,
    StagedTransfer,
    check_range,
    make_transfer,
)

_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    flat=st.booleans(),
    source_dtype=st.sampled_from(_DTYPES),
    target_dtype=st.sampled_from(_DTYPES),
    buffer_bytes=st.sampled_from([16, 24, 64, 1024]),
)
def test_buffers_change_nothing(
    rows: int,
    columns: int,
    flat: bool,
    source_dtype: torch.dtype,
    target_dtype: torch.dtype,
    buffer_bytes: int,
) -> None:
    whole = torch.randn(rows, columns + 3).to(source_dtype)
    source = whole[:, 2].clone() if flat else whole[:, 1 : 1 + columns]
    shape = (rows,) if flat else (rows, columns + 1)
    direct, staged = (torch.zeros(shape, dtype=target_dtype) for _ in range(2))
    part = slice(None) if flat else (slice(None), slice(0, columns))
    DirectTransfer().copy(direct[part], source)
    transfer = StagedTransfer(torch.device("cpu"), buffer_bytes=buffer_bytes, buffers=2)
    transfer.copy(staged[part], source)
    transfer.finish()
    assert torch.equal(direct, staged)


def test_a_cpu_needs_no_buffers() -> None:
    assert isinstance(make_transfer(torch.device("cpu")), DirectTransfer)


def test_only_float16_has_a_smaller_range() -> None:
    large = torch.tensor([1.0, -65505.0])
    with pytest.raises(ModelError, match="file x: has values too large for float16; use bfloat16 or float32"):
        check_range(large, torch.float16, "file x")
    with pytest.raises(ModelError, match="too large"):
        check_range(-large.to(torch.bfloat16) * 4, torch.float16, "file x")
    check_range(large, torch.bfloat16, "file x")
    check_range(torch.tensor([65504.0]), torch.float16, "file x")
    check_range(torch.tensor([]), torch.float16, "file x")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_arrives_on_a_gpu_is_what_was_sent() -> None:
    device = torch.device("cuda:0")
    transfer = StagedTransfer(device, buffer_bytes=1 << 12, buffers=2)
    sources = [torch.randn(100, 70)[:, 3:67] for _ in range(20)]
    targets = [torch.empty(100, 64, dtype=torch.bfloat16, device=device) for _ in sources]
    for target, source in zip(targets, sources, strict=True):
        transfer.copy(target, source)
    transfer.finish()
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target.cpu(), source.to(torch.bfloat16))
