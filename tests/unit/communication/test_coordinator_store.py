"""torch's key-value store over the coordinator's gRPC, against the real service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest
from torch._C._distributed_c10d import PrefixStore

from ryzanstein.wire import CHANNEL_OPTIONS
from ryzanstein_shard_worker.communication.rendezvous import Attempt, CoordinatorStore, RendezvousError
from tests.distributed.rendezvous_server import RendezvousServer


@pytest.fixture(scope="module")
def server() -> Iterator[RendezvousServer]:
    with RendezvousServer() as server:
        yield server


@pytest.fixture
def channel(server: RendezvousServer) -> Iterator[grpc.Channel]:
    server.open("g", 7, "n")
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        yield channel


def store_over(channel: grpc.Channel, *, epoch: int = 7, limit_s: float = 10.0) -> CoordinatorStore:
    return CoordinatorStore(channel, Attempt("g", epoch, "n"), deadline=time.monotonic() + limit_s)


def test_what_torch_calls_from_cpp_reaches_the_coordinator(channel: grpc.Channel) -> None:
    store = store_over(channel)
    prefixed = PrefixStore("p", store)  # its methods are C++ and call back into Python
    prefixed.set("key", "value")
    assert prefixed.get("key") == b"value"
    assert store.get("p/key") == b"value"
    assert prefixed.add("count", 3) == 3
    assert prefixed.check(["key", "count"])
    assert not prefixed.check(["other"])
    prefixed.wait(["key"])
    prefixed.wait(["key"], timedelta(seconds=1))
    assert prefixed.compare_set("key", "value", "other") == b"other"
    assert prefixed.delete_key("key")
    assert not prefixed.delete_key("key")
    assert prefixed.clone().get("count") == b"3"  # type: ignore[attr-defined]  # not in the stubs


def test_any_bytes_survive(channel: grpc.Channel) -> None:
    store = store_over(channel)
    value = bytes(range(256)) * 10
    store.set("binary", value)
    assert store.get("binary") == value


def test_a_wait_that_is_too_long_says_for_what(channel: grpc.Channel) -> None:
    started_at = time.monotonic()
    with pytest.raises(RendezvousError, match=r"nobody came within 0\.2 s \(wait for a, b\)"):
        store_over(channel).wait(["a", "b"], timedelta(seconds=0.2))
    with pytest.raises(RendezvousError, match="nobody came"):
        store_over(channel, limit_s=0.2).get("a")
    assert time.monotonic() - started_at < 2


def test_a_formed_group_has_time_for_each_later_call(channel: grpc.Channel) -> None:
    store = store_over(channel, limit_s=0.0)
    with pytest.raises(RendezvousError):
        store.set("a", "1")
    store.formed(5.0)
    store.set("a", "1")
    assert store.get("a") == b"1"


def test_cancel_frees_a_blocked_wait_and_refuses_every_later_call(channel: grpc.Channel) -> None:
    store = store_over(channel)
    freed_at: list[float] = []

    def wait() -> None:
        with pytest.raises(RendezvousError, match="the epoch is over"):
            store.get("never")
        freed_at.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    while not store._calls:
        time.sleep(0.001)
    time.sleep(0.05)  # let the call reach the coordinator
    cancelled_at = time.monotonic()
    store.cancel("the epoch is over")
    thread.join(5)
    assert freed_at[0] - cancelled_at < 0.1
    with pytest.raises(RendezvousError, match="the epoch is over"):
        store.set("a", "1")


def test_another_epoch_is_refused_with_the_reason(channel: grpc.Channel) -> None:
    with pytest.raises(RendezvousError, match="FAILED_PRECONDITION: epoch 6 is over; the current epoch is 7"):
        store_over(channel, epoch=6).set("a", "1")


def test_no_coordinator_is_an_error_that_says_so() -> None:
    with (
        grpc.insecure_channel("127.0.0.1:1", options=CHANNEL_OPTIONS) as channel,
        pytest.raises(RendezvousError, match="UNAVAILABLE"),
    ):
        store_over(channel).set("a", "1")
