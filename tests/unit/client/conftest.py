from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from .scripted_coordinator import CoordinatorThread, ScriptedCoordinator


@pytest_asyncio.fixture
async def coordinator() -> AsyncIterator[ScriptedCoordinator]:
    """In the event loop of the test."""
    started = ScriptedCoordinator()
    await started.start()
    yield started
    await started.close()


@pytest.fixture
def server() -> Iterator[CoordinatorThread]:
    """In a thread, for tests without an event loop."""
    thread = CoordinatorThread()
    yield thread
    thread.close()
