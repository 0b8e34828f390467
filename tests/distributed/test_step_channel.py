"""The leader's messages: complete, in order, to every rank; and nobody is overrun."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from ryzanstein_shard_worker.communication import CommunicationError

from .ranks import SHARED_MEMORY, Rank, Ranks, failure, needs_native_library

ONE_HOST = pytest.param(["a", "a", "a"], id="shared_memory", marks=needs_native_library)
THREE_HOSTS = pytest.param(["a", "b", "c"], id="tcp")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(3) as ranks:
        yield ranks


@pytest.fixture(params=[ONE_HOST, THREE_HOSTS])
def group(ranks: Ranks, request: pytest.FixtureRequest) -> Ranks:
    ranks.form(SHARED_MEMORY, host_ids=request.param, timeout_s=1.0)
    return ranks


def messages() -> list[bytes]:
    """Empty, small, around the ring's size, far larger, and enough to go around it several times."""
    sizes = [0, 1, 3, 4096, 262_139, 262_140, 262_144, 1_500_000, *range(1, 60_000, 997)]
    return [hashlib.shake_128(str(size).encode()).digest(size) for size in sizes]


def send_all(rank: Rank) -> None:
    for message in messages():
        rank.channel.send(message)


def receive_all(rank: Rank, pause_s: float) -> None:
    for expected in messages():
        assert rank.channel.receive(10.0) == expected
        time.sleep(pause_s)


def test_every_message_arrives_whole_and_in_order(group: Ranks) -> None:
    group.start(send_all, on=[0])
    group.start(receive_all, 0.0, on=[1])
    group.start(receive_all, 0.002, on=[2])  # a slow rank holds the others up, and loses nothing
    assert group.results() == [None, None, None]


def send_after(rank: Rank, delay_s: float, payload: bytes) -> None:
    time.sleep(delay_s)
    rank.channel.send(payload)


def receive(rank: Rank, timeout_s: float) -> bytes:
    return rank.channel.receive(timeout_s)


def test_a_rank_that_sleeps_is_woken(group: Ranks) -> None:
    group.start(receive, 5.0, on=[1, 2])
    group.start(send_after, 0.3, b"plan", on=[0])
    assert group.results() == [None, b"plan", b"plan"]


def test_nothing_from_the_leader_within_the_time_names_the_leader(group: Ranks) -> None:
    group.start(receive, 0.3, on=[1])
    (result,) = group.results(on=[1])
    error = failure(result)
    assert (error.rank, error.peer, error.operation, error.sequence) == (1, 0, "step_channel.receive", 1)
    assert "no answer from rank 0 within 0.3 s" in error.reason


def flood(rank: Rank) -> CommunicationError:
    try:
        for _ in range(100):
            rank.channel.send(bytes(1_000_000))
    except CommunicationError as error:
        return error
    raise AssertionError("the leader was not stopped")


def receive_for_ever(rank: Rank) -> CommunicationError:
    try:
        while True:
            rank.channel.receive(5.0)
    except CommunicationError as error:
        return error


def test_a_rank_that_takes_nothing_stops_the_leader_and_is_named(group: Ranks) -> None:
    group.start(flood, on=[0])
    group.start(receive_for_ever, on=[1])
    (error,) = group.results(on=[0])
    assert error.peer == 2
    group.call(leave, on=[0])
    group.results(on=[1])


def leave(rank: Rank) -> None:
    rank.manager.leave(rank.group.epoch)
