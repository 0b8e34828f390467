"""A step's memory is kept for the next one while a group serves, and given back before a shard is loaded."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator

import pytest
import torch

from ryzanstein_shard_worker.freed_memory import give_freed_memory_back, keep_freed_memory

_PIECE_BYTES = 8 * 2**20

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    yield
    give_freed_memory_back()


def pages_touched_first(times: int) -> int:
    """Minor page faults of this thread while a piece is allocated, written and freed so often."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(times):
        torch.empty(_PIECE_BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_pieces_of_the_same_size_are_the_same_memory_while_it_is_kept() -> None:
    keep_freed_memory()
    pages_touched_first(10)  # until a hole of the size is found
    assert pages_touched_first(5) < 100


def test_what_was_kept_goes_back_before_weights_are_loaded() -> None:
    keep_freed_memory()
    pages_touched_first(10)
    give_freed_memory_back()
    assert pages_touched_first(1) > 500
