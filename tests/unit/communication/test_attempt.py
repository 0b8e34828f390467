"""A call that can't be interrupted is left to itself, and what it still brings is not lost track of."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from ryzanstein_shard_worker.communication.attempt import attempt_in_thread


def run(
    attempt: Callable[[], str],
    discard: Callable[[str], None] = lambda result: None,
    *,
    timeout_s: float = 10.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    return attempt_in_thread(attempt, discard, name="forming", timeout_s=timeout_s, cancelled=cancelled)


def test_what_an_attempt_brings_is_returned_and_what_it_raises_is_raised() -> None:
    assert run(lambda: "group") == "group"

    def refuse() -> str:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        run(refuse)


@pytest.mark.parametrize(
    ("timeout_s", "cancelled", "error"),
    [(10.0, True, InterruptedError), (0.01, False, TimeoutError)],
    ids=["cancelled", "late"],
)
def test_what_an_abandoned_attempt_brings_is_discarded(
    timeout_s: float, cancelled: bool, error: type[OSError]
) -> None:
    gate = threading.Event()
    discarded: queue.SimpleQueue[str] = queue.SimpleQueue()

    def attempt() -> str:
        gate.wait(10)
        return "too late"

    with pytest.raises(error, match="forming"):
        run(attempt, discarded.put, timeout_s=timeout_s, cancelled=lambda: cancelled)
    gate.set()
    assert discarded.get(timeout=10) == "too late"
