"""NaN and infinity in what a rank gives to a sum: found in every place, and nothing else is taken for them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ryzanstein import failpoints
from ryzanstein_shard_worker.communication import CommunicationError, SingleHandler
from ryzanstein_shard_worker.communication.finite import DeviceFlags, first_non_finite, holds_non_finite
from ryzanstein_shard_worker.memory_errors import is_out_of_memory

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_is_told_apart(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)  # [65536]
    finite = torch.isfinite(every)
    assert not holds_non_finite(every[finite].contiguous())
    assert all(holds_non_finite(number[None]) for number in every[~finite])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    for size in (1, 7, 64, 129):
        tensor = torch.full((size,), -largest, dtype=dtype)
        assert not holds_non_finite(tensor)
        for place in range(size):
            tensor[place] = bad
            assert holds_non_finite(tensor), (size, place)
            tensor[place] = largest


def test_other_layouts_and_kinds_of_numbers_are_looked_at_too() -> None:
    grid = torch.zeros(4, 6)
    grid[1, 3] = math.nan
    assert holds_non_finite(grid.t())
    assert not holds_non_finite(grid[:, :3])
    assert not holds_non_finite(torch.full((3,), 2**31 - 1, dtype=torch.int32))
    assert not holds_non_finite(torch.zeros(0))


def test_a_group_of_one_refuses_a_bad_part_and_names_itself() -> None:
    handler = SingleHandler()
    with pytest.raises(
        CommunicationError, match=r"all_reduce #1 .*what rank 0 gave to the sum holds NaN"
    ) as caught:
        handler.all_reduce(torch.tensor([1.0, math.nan]))
    assert caught.value.peer == 0
    with pytest.raises(CommunicationError, match="NaN"):
        handler.barrier()


def test_the_first_bad_part_tells_whose_it_was() -> None:
    """Afterwards every rank's parts are bad, because they come of the sum."""
    good, bad = torch.ones(8, dtype=torch.bfloat16), torch.full((8,), math.inf)
    flags = [DeviceFlags(), DeviceFlags()]
    for own in flags:
        own.note(good)
        own.note(torch.zeros(0))
        own.note(torch.ones(3, dtype=torch.int64))
    flags[0].note(good)
    flags[1].note(bad)
    for own in flags:
        own.note(bad * 0)
    taken = [own.take() for own in flags]
    assert all(magnitudes is not None and len(magnitudes) == 3 for magnitudes in taken)
    assert first_non_finite(torch.stack([m for m in taken if m is not None])) == 1
    assert flags[0].take() is None


def test_a_step_of_very_many_sums_forgets_no_bad_part() -> None:
    flags = DeviceFlags()
    flags.note(torch.tensor([math.nan]))
    for _ in range(1500):
        flags.note(torch.ones(1))
    magnitudes = flags.take()
    assert magnitudes is not None
    assert first_non_finite(magnitudes[None]) == 0


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(failpoints, "_directory", str(tmp_path))
    monkeypatch.setattr(failpoints, "_process", "w0")
    return tmp_path


def test_an_operation_that_raises_is_a_failure_of_the_group_with_this_rank_to_blame(armed: Path) -> None:
    (armed / "collective.all_gather@w0").write_text("error")
    handler = SingleHandler()
    with pytest.raises(CommunicationError, match=r"all_gather #1 .*it failed on rank 0: failpoint") as caught:
        handler.all_gather(torch.zeros(2))
    assert (caught.value.rank, caught.value.peer) == (0, 0)


def test_memory_that_runs_out_in_an_operation_is_told_as_that(armed: Path) -> None:
    (armed / "collective.all_reduce@w0").write_text("memory")
    with pytest.raises(torch.OutOfMemoryError):
        SingleHandler().all_reduce(torch.zeros(2))


def test_a_poisoned_operation_gives_nan(armed: Path) -> None:
    (armed / "collective.all_gather@w0").write_text("poison")
    assert SingleHandler().all_gather(torch.zeros(2)).isnan().all()


def test_memory_that_ran_out_is_recognised_as_torch_really_says_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
    )
    assert not is_out_of_memory(RuntimeError("shapes don't fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
