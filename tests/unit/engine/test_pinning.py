"""The threads that compute stay on their processors, and nobody else does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from ryzanstein_shard_worker.config import ConfigError, read_pinning
from ryzanstein_shard_worker.pinning import Pinning

ALLOWED = os.sched_getaffinity(0)
FIRST = min(ALLOWED)


def in_a_thread(work: Callable[[], None]) -> None:
    """Whatever it does to its own mask is gone with it. Raises what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def mask_of_a_new_thread() -> set[int]:
    seen: list[set[int]] = []
    in_a_thread(lambda: seen.append(os.sched_getaffinity(0)))
    return seen[0]


def test_a_pinned_thread_hands_its_processors_to_those_that_it_starts_but_not_while_they_are_lifted() -> None:
    def work() -> None:
        pinning = Pinning((FIRST,))
        pinning.pin()
        assert os.sched_getaffinity(0) == mask_of_a_new_thread() == {FIRST}
        with pinning.lifted():
            assert mask_of_a_new_thread() == ALLOWED
        assert os.sched_getaffinity(0) == {FIRST}

    in_a_thread(work)
    assert os.sched_getaffinity(0) == ALLOWED, "other threads go where they like"


def test_without_processors_nothing_is_pinned() -> None:
    def work() -> None:
        pinning = Pinning(())
        pinning.pin()
        with pinning.lifted():
            assert os.sched_getaffinity(0) == ALLOWED

    in_a_thread(work)


def test_processors_that_are_not_there_are_said_and_the_thread_goes_on() -> None:
    def work() -> None:
        pinning = Pinning((60000,))
        with capture_logs() as logs:
            pinning.pin()
        assert [(log["event"], log["processors"]) for log in logs] == [("not_pinned", "60000")]
        with pinning.lifted():
            assert os.sched_getaffinity(0) == ALLOWED

    in_a_thread(work)


def test_the_flag_takes_lists_and_none() -> None:
    assert read_pinning("none") == ()
    assert read_pinning("0-2,5") == (0, 1, 2, 5)
    with pytest.raises(
        ConfigError, match="--cpu-pinning: 'all' is neither a number nor a range like 0-15; give"
    ):
        read_pinning("all")
