"""The command line as programs in terminals and pipes, against a coordinator that follows a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.scripted_coordinator import CoordinatorThread


@pytest.fixture
def server() -> Iterator[CoordinatorThread]:
    """In a thread, for tests without an event loop."""
    thread = CoordinatorThread()
    yield thread
    thread.close()
