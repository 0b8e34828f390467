"""The coordinator's side of the rendezvous, without a network."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from ryzanstein.v1 import cluster_pb2
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.rendezvous import MAX_BYTES, MAX_KEYS, RendezvousStore


def key(epoch: int = 1, nonce: str = "n", group_id: str = "g") -> cluster_pb2.RendezvousKey:
    return cluster_pb2.RendezvousKey(group_id=group_id, epoch=epoch, nonce=nonce)


@pytest.fixture
async def store() -> RendezvousStore:
    store = RendezvousStore()
    store.open("g", 1, "n")
    return store


async def test_a_wait_ends_when_the_last_key_is_there(store: RendezvousStore) -> None:
    store.set_value(key(), "a", b"1")
    waiting = asyncio.create_task(store.wait_for_values(key(), ["b", "a"]))
    await asyncio.sleep(0)
    store.set_value(key(), "c", b"3")
    await asyncio.sleep(0)
    assert not waiting.done()
    store.set_value(key(), "b", b"2")
    assert await waiting == [b"2", b"1"]


async def test_values_may_be_empty_and_may_change(store: RendezvousStore) -> None:
    store.set_value(key(), "a", b"")
    assert store.check_values(key(), ["a"])
    assert await store.wait_for_values(key(), ["a"]) == [b""]
    store.set_value(key(), "a", b"other")
    assert await store.wait_for_values(key(), ["a"]) == [b"other"]
    assert not store.check_values(key(), ["a", "b"])


async def test_a_counter_counts_from_zero(store: RendezvousStore) -> None:
    assert store.add_to_value(key(), "n", 2) == 2
    assert store.add_to_value(key(), "n", -5) == -3
    assert await store.wait_for_values(key(), ["n"]) == [b"-3"]
    store.set_value(key(), "text", b"abc")
    with pytest.raises(StatusError, match="does not hold a number") as caught:
        store.add_to_value(key(), "text", 1)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_counter_stays_within_what_a_message_holds(store: RendezvousStore) -> None:
    assert store.add_to_value(key(), "n", 2**63 - 1) == 2**63 - 1
    with pytest.raises(StatusError, match="can't count beyond 64 bits") as caught:
        store.add_to_value(key(), "n", 1)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert store.add_to_value(key(), "n", -1) == 2**63 - 2


async def test_compare_and_set_as_torchs_own_store_does_it(store: RendezvousStore) -> None:
    assert store.compare_set_value(key(), "k", b"expected", b"new") == b"expected"
    assert not store.check_values(key(), ["k"])
    assert store.compare_set_value(key(), "k", b"", b"first") == b"first"
    assert store.compare_set_value(key(), "k", b"other", b"second") == b"first"
    assert store.compare_set_value(key(), "k", b"first", b"second") == b"second"


async def test_a_deleted_key_is_gone(store: RendezvousStore) -> None:
    store.set_value(key(), "a", b"1")
    assert store.delete_value(key(), "a")
    assert not store.delete_value(key(), "a")
    assert not store.check_values(key(), ["a"])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (key(epoch=0), "epoch 0 is over; the current epoch is 1"),
        (key(epoch=2), "epoch 2 is over"),
        (key(nonce="earlier"), "this attempt to form epoch 1 is over"),
        (key(group_id="other"), "group 'other' is not being formed"),
    ],
)
async def test_whoever_is_of_another_attempt_is_refused(
    store: RendezvousStore, where: cluster_pb2.RendezvousKey, words: str
) -> None:
    for call in (
        lambda: store.set_value(where, "a", b""),
        lambda: store.add_to_value(where, "a", 1),
        lambda: store.compare_set_value(where, "a", b"", b"x"),
        lambda: store.check_values(where, ["a"]),
        lambda: store.delete_value(where, "a"),
    ):
        with pytest.raises(StatusError, match=words) as caught:
            call()
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(StatusError, match=words):
        await store.wait_for_values(where, ["a"])


@pytest.mark.parametrize("end", ["open", "close"])
async def test_the_next_attempt_frees_whoever_waits_in_the_last_one(store: RendezvousStore, end: str) -> None:
    waiting = asyncio.create_task(store.wait_for_values(key(), ["never"]))
    await asyncio.sleep(0)
    if end == "open":
        store.open("g", 2, "n2")
    else:
        store.close("g")
    with pytest.raises(StatusError) as caught:
        await waiting
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_new_attempt_begins_empty_and_groups_are_apart(store: RendezvousStore) -> None:
    store.set_value(key(), "a", b"1")
    store.open("h", 1, "n")
    assert not store.check_values(key(group_id="h"), ["a"])
    store.open("g", 2, "n")
    assert not store.check_values(key(epoch=2), ["a"])


async def test_an_attempt_holds_no_more_than_any_group_needs(store: RendezvousStore) -> None:
    store.set_value(key(), "big", bytes(MAX_BYTES - 100))
    with pytest.raises(StatusError) as caught:
        store.set_value(key(), "more", bytes(200))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    store.set_value(key(), "big", b"")  # room again
    for number in range(MAX_KEYS - 1):
        store.set_value(key(), str(number), b"")
    with pytest.raises(StatusError):
        store.set_value(key(), "one more", b"")
    store.set_value(key(), "0", b"changing one is possible")
