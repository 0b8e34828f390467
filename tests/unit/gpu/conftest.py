"""The kernels of a GPU's step, computed by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.fixture(scope="session")
def triton() -> None:
    """Skips where Triton is missing (torch's builds for CUDA bring it). With a GPU, tests/gpu has these tests."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "Triton is not installed: 'pip install triton' (3.9 or later) lets its interpreter run the kernels here"
        )
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
