"""Real checkpoints for the tests of loading and splitting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.checkpoints import checkpoints  # noqa: F401 - a fixture

# A busy machine is no defect: an example may take as long as it takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Two of torch's threads beside other busy processes wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
