from __future__ import annotations

from tests.checkpoints import checkpoints  # noqa: F401 - a fixture
