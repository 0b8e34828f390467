"""Every test here needs one NVIDIA GPU; elsewhere it is collected and skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import checkpoints  # noqa: F401 - a fixture

_HERE = Path(__file__).parent


def why_no_gpu() -> str:
    """Empty if torch can use a GPU here."""
    if torch.cuda.is_available():
        return ""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} finds no NVIDIA GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_gpu()
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda:0")
