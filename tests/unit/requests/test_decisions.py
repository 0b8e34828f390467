"""Deadlines, order and retention: plain values in, decisions out."""

from __future__ import annotations

from array import array

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.admission import Amount
from ryzanstein_coordinator.deadlines import DeadlineQueue
from ryzanstein_coordinator.dispatch import GroupLoad, choose_group, replay_order
from ryzanstein_coordinator.output import RecordedOutput
from ryzanstein_coordinator.patience import Overdue, RouterConfig, overdue
from ryzanstein_coordinator.request_store import RequestStore, RetentionLimits
from ryzanstein_coordinator.requests import Ending, RequestRecord, RequestSpec, Timings
from ryzanstein_coordinator.serving_group import ServingGroup
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .trained_tokenizers import byte_level

TOKENIZER = ModelTokenizer(byte_level())
ASKED = Amount(requests=1, prompt_bytes=4, tokens=101)


def record(
    name: str,
    *,
    arrival: int = 0,
    prompt: int = 1,
    emitted: int = 0,
    priority: int = 0,
    owner: str = "",
    max_tokens: int = 100,
) -> RequestRecord:
    spec = RequestSpec(
        owner=owner,
        request_id=name,
        model="tiny",
        prompt=array("I", [20] * prompt),
        sampling=SamplingParams(max_tokens=max_tokens),
        priority=priority,
    )
    made = RequestRecord(
        spec=spec,
        output=RecordedOutput(TOKENIZER.detokenizer()),
        arrival=arrival,
        timings=Timings(admitted_at=0.0),
    )
    made.output.extend([30] * emitted)
    return made


# --- deadlines


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200), st.integers(0, 20))
def test_exactly_those_whose_time_is_over_come_out_earliest_first(
    entries: list[tuple[int, bool]], now: int
) -> None:
    queue: DeadlineQueue[list[int]] = DeadlineQueue()
    items = [[at] for at, _ in entries]
    for item in items:
        queue.add(item, item[0])
    for item, (_, discarded) in zip(items, entries, strict=True):
        if discarded:
            queue.discard(item)

    expired = queue.expired(now)

    kept = [item for item, (_, discarded) in zip(items, entries, strict=True) if not discarded]
    assert expired == sorted((item for item in kept if item[0] <= now), key=lambda item: item[0])
    assert len(queue) == len(kept) - len(expired)
    assert queue.expired(now) == []


def test_what_is_discarded_does_not_pile_up() -> None:
    queue: DeadlineQueue[list[int]] = DeadlineQueue()
    for _ in range(10_000):
        item = [0]
        queue.add(item, 1e9)
        queue.discard(item)

    assert len(queue._heap) < 200


# --- order


def test_the_group_with_the_smallest_share_taken_is_chosen() -> None:
    groups = [GroupLoad("a", 8, 16), GroupLoad("b", 3, 8), GroupLoad("c", 40, 32)]

    assert choose_group(groups) == "b"
    assert choose_group([GroupLoad("b", 2, 8), GroupLoad("a", 2, 8)]) == "a"


def test_a_group_takes_a_quarter_more_than_it_runs() -> None:
    assert choose_group([GroupLoad("a", 39, 32)]) == "a"
    assert choose_group([GroupLoad("a", 40, 32)]) is None
    assert choose_group([GroupLoad("a", 2, 1)]) == "a"
    assert choose_group([]) is None


def test_replays_are_shortest_first_then_those_that_had_not_begun_as_they_came() -> None:
    records = [
        record("new, late", arrival=5),
        record("long", arrival=1, prompt=50, emitted=10),
        record("new, early", arrival=4),
        record("short", arrival=2, prompt=5, emitted=20),
        record("new, urgent", arrival=6, priority=1),
    ]

    order = [r.spec.request_id for r in replay_order(records)]

    assert order == ["short", "long", "new, urgent", "new, early", "new, late"]


def group(name: str, *, lost_at: float | None = None, stalled: int = 0) -> ServingGroup:
    """Ready unless it is lost."""
    made = ServingGroup(name, lost_at=lost_at, _open=lost_at is None)
    made.stalled = {arrival: record(f"r{arrival}") for arrival in range(stalled)}
    return made


def looked_at(now: float, *groups: ServingGroup, no_group_since: float | None = None) -> Overdue:
    return overdue(now, groups, RouterConfig(), no_group_since=no_group_since)


def test_without_a_group_everybody_waits_for_the_grace_and_not_longer() -> None:
    lost = group("a", lost_at=100.0, stalled=3)
    assert looked_at(144.9, lost, no_group_since=100.0) == Overdue(next_at=145.0)
    assert looked_at(145.0, lost, no_group_since=100.0) == Overdue(give_up=True)


def test_streams_of_a_lost_group_move_after_a_while_if_another_serves() -> None:
    serving, lost, later = (
        group("a"),
        group("b", lost_at=100.0, stalled=1),
        group("c", lost_at=101.0, stalled=1),
    )
    empty = group("d", lost_at=100.0)
    assert looked_at(101.9, serving, lost, later, empty) == Overdue(next_at=102.0)
    assert looked_at(102.0, serving, lost, later, empty) == Overdue(moving=(lost,), next_at=103.0)
    assert looked_at(103.0, serving, lost, later, empty) == Overdue(moving=(lost, later))


def test_nothing_moves_while_no_stream_is_open() -> None:
    opening = ServingGroup("a")
    assert looked_at(1000.0, opening, group("b", lost_at=100.0, stalled=1)) == Overdue()


# --- retention


def test_an_id_is_taken_while_its_request_lives_and_free_afterwards() -> None:
    store = RequestStore(RetentionLimits())
    first = record("a")
    reservation = store.reserve(first.key, ASKED)
    with pytest.raises(StatusError) as while_coming:
        store.reserve(first.key, ASKED)
    store.release(reservation)
    store.add(first)
    with pytest.raises(StatusError) as while_living:
        store.reserve(first.key, ASKED)
    store.reserve(("somebody else", "a"), ASKED)
    first.end(Ending("stop"), 1.0)
    store.retire(first)

    assert {while_coming.value.code, while_living.value.code} == {grpc.StatusCode.ALREADY_EXISTS}
    assert store.find(first.key) is first
    store.add(record("a"))
    assert store.find(first.key) is not first


def test_an_ended_request_is_kept_for_its_time() -> None:
    store = RequestStore(RetentionLimits(retain_s=10.0))
    one = record("a")
    store.add(one)
    one.end(Ending("stop"), 5.0)
    store.retire(one)

    assert store.next_forget_at() == 15.0
    assert list(store.forget(14.9)) == []
    assert list(store.forget(15.0)) == [one]
    with pytest.raises(StatusError, match="no request 'a'") as caught:
        store.find(one.key)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "limits", [RetentionLimits(max_ended=3), RetentionLimits(max_ended_bytes=3 * (1024 + 4 * 8 + 16 * 4))]
)
def test_of_too_many_the_oldest_are_forgotten_first(limits: RetentionLimits) -> None:
    store = RequestStore(limits)
    for i in range(10):
        one = record(str(i), prompt=8, emitted=4)
        store.add(one)
        one.end(Ending("stop"), float(i))
        store.retire(one)
        list(store.forget(float(i)))

    kept = [key for key in map(str, range(10)) if ("", key) in store._ended]
    assert kept == ["7", "8", "9"]


def test_what_is_counted_returns_to_nothing() -> None:
    store = RequestStore(RetentionLimits())
    one, other = record("a", prompt=25, owner="one"), record("a", owner="other")
    one.expected_tokens = 100
    reservation = store.reserve(one.key, Amount(1, 1000, 100))
    assert (store.unfinished, store.total, store.of_owner("one")) == (1, Amount(1, 1000, 100), store.total)
    store.resize(reservation, one.amount)
    assert store.total == one.amount == Amount(1, 100, 125)
    store.release(reservation)
    assert store.total == Amount()
    store.add(one)
    store.add(other)
    assert store.total == Amount(2, 104, 126)
    assert store.of_owner("other") == Amount(1, 4, 1)
    assert [store.owners_with(name) for name in ("one", "other", "third")] == [2, 2, 3]
    for ended in (one, other):
        ended.end(Ending("stop"), 1.0)
        store.retire(ended)

    assert (store.unfinished, store.total, store.owners_with("one")) == (0, Amount(), 1)
