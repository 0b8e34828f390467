from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from .quiet_logs import errors_only


@pytest.fixture(autouse=True)
def worlds_end_unheard() -> Iterator[None]:
    """What a schedule leaves behind is collected here: its requests' last log lines belong to no other test."""
    yield
    with errors_only(lambda _: None):
        gc.collect()
