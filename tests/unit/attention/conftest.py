"""The native kernels at every level of instructions that this CPU has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ryzanstein_shard_worker.native.attention import Isa, NativeAttention
from ryzanstein_shard_worker.native.library import load_library


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Two of torch's threads beside other busy processes wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=list(Isa), ids=lambda isa: isa.name.lower())
def native(request: pytest.FixtureRequest) -> NativeAttention:
    library = load_library()
    if library is None:
        pytest.skip("the native library was not built: no C compiler")
    isa: Isa = request.param
    if isa > NativeAttention(library).isa:
        pytest.skip(f"this CPU has no {isa.name}")
    return NativeAttention(library, isa)


@pytest.fixture(scope="session", params=["native", "torch"])
def kernel(request: pytest.FixtureRequest) -> NativeAttention | None:
    """What a pool may be read by; None means torch's operations."""
    if request.param == "torch":
        return None
    library = load_library()
    if library is None:
        pytest.skip("the native library was not built: no C compiler")
    return NativeAttention(library)
