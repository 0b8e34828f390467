"""The native kernels at every level of instructions that this CPU has."""

from __future__ import annotations

import pytest

from ryzanstein_shard_worker.native.attention import Isa, NativeAttention
from ryzanstein_shard_worker.native.library import load_library


@pytest.fixture(scope="session", params=list(Isa), ids=lambda isa: isa.name.lower())
def native(request: pytest.FixtureRequest) -> NativeAttention:
    library = load_library()
    if library is None:
        pytest.skip("the native library was not built: no C compiler")
    isa: Isa = request.param
    if isa > NativeAttention(library).highest:
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
