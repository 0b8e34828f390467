from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ..requests.cluster import request_path
from ..requests.leader import Leader
from .serving import TOKENIZER, Front, front


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    leader = await Leader().start()
    yield leader
    await leader.close()


@pytest.fixture
async def served(leader: Leader) -> AsyncIterator[Front]:
    path = request_path(tokenizer=TOKENIZER)
    path.serve(leader)
    async with front(path) as served:
        yield served
