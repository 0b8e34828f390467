"""Admission, deadlines, order and retention: plain values in, decisions out."""

from __future__ import annotations

from array import array

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.admission import AdmissionGate, AdmissionLimits, Load, admit, retry_delay_s
from ryzanstein_coordinator.deadlines import DeadlineQueue
from ryzanstein_coordinator.dispatch import GroupLoad, WaitingQueue, choose_group, replay_order
from ryzanstein_coordinator.output import RecordedOutput
from ryzanstein_coordinator.patience import Overdue, overdue
from ryzanstein_coordinator.request_store import RequestStore, RetentionLimits
from ryzanstein_coordinator.requests import Ending, RequestRecord, RequestSpec, Timings
from ryzanstein_coordinator.serving_group import ServingGroup
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .trained_tokenizers import byte_level

TOKENIZER = ModelTokenizer(byte_level())


def record(
    name: str, *, arrival: int = 0, prompt: int = 1, emitted: int = 0, priority: int = 0
) -> RequestRecord:
    spec = RequestSpec(
        owner="",
        request_id=name,
        model="tiny",
        prompt=array("I", [20] * prompt),
        sampling=SamplingParams(max_tokens=100),
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


def load(**values: float) -> Load:
    return Load(
        **{
            "unfinished": 0,
            "capacity": 4,
            "prompt_bytes": 0,
            "refused_ahead": 0,
            "endings_per_s": 0.0,
            **values,
        }  # type: ignore[arg-type]
    )


# --- admission


def test_eight_may_wait_for_each_one_that_runs() -> None:
    assert admit(load(unfinished=4 + 8 * 4 - 1), AdmissionLimits(), new_bytes=4) is None
    refusal = admit(load(unfinished=4 + 8 * 4), AdmissionLimits(), new_bytes=4)

    assert refusal is not None
    assert "32 requests are waiting" in refusal.reason


def test_all_prompts_together_are_bounded() -> None:
    limits = AdmissionLimits(max_prompt_bytes=1000)

    assert admit(load(prompt_bytes=900), limits, new_bytes=100) is None
    assert admit(load(prompt_bytes=900), limits, new_bytes=101) is not None


@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_a_retry_delay_is_between_a_tenth_of_a_second_and_half_a_minute(ahead: int, rate: float) -> None:
    assert 0.1 <= retry_delay_s(ahead, rate) <= 30.0


def test_those_who_are_refused_are_told_to_come_one_after_the_other() -> None:
    gate = AdmissionGate(AdmissionLimits(max_waiting=0))
    for moment in range(11):
        gate.ended(moment / 10)  # ten per second

    delays = []
    for _ in range(3):
        refusal = gate.ask(1.0, unfinished=1, capacity=1, prompt_bytes=0, new_bytes=0)
        assert refusal is not None
        delays.append(refusal.retry_after_s)

    assert delays == pytest.approx([0.1, 2 / 11, 3 / 11])


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
    return overdue(now, groups, no_group_since=no_group_since, no_group_grace_s=45.0, move_after_s=2.0)


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


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), max_size=150))
def test_the_queue_gives_out_by_priority_then_arrival_without_those_who_left(
    entries: list[tuple[int, bool]],
) -> None:
    queue = WaitingQueue()
    records = [record(str(i), arrival=i, priority=priority) for i, (priority, _) in enumerate(entries)]
    for one in records:
        queue.push(one)
    for one, (_, leaves) in zip(records, entries, strict=True):
        if leaves:
            queue.discard(one)
    staying = [one for one, (_, leaves) in zip(records, entries, strict=True) if not leaves]
    assert len(queue) == len(staying)

    order = []
    while (one := queue.pop()) is not None:  # type: ignore[assignment]
        order.append(one)

    assert order == sorted(staying, key=lambda r: (-r.spec.priority, r.arrival))


def test_those_who_left_the_queue_do_not_pile_up_in_it() -> None:
    queue = WaitingQueue()
    for arrival in range(5000):
        one = record(str(arrival), arrival=arrival)
        queue.push(one)
        queue.discard(one)

    assert len(queue._heap) < 200


# --- retention


def test_an_id_is_taken_while_its_request_lives_and_free_afterwards() -> None:
    store = RequestStore(RetentionLimits())
    first = record("a")
    reservation = store.reserve(first.key, 4)
    with pytest.raises(StatusError) as while_coming:
        store.reserve(first.key, 4)
    store.release(reservation)
    store.add(first)
    with pytest.raises(StatusError) as while_living:
        store.reserve(first.key, 4)
    store.reserve(("somebody else", "a"), 4)
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


def test_bytes_and_counts_return_to_nothing() -> None:
    store = RequestStore(RetentionLimits())
    one = record("a", prompt=25)
    reservation = store.reserve(one.key, 1000)
    assert (store.unfinished, store.prompt_bytes) == (1, 1000)
    store.release(reservation)
    store.add(one)
    assert (store.unfinished, store.prompt_bytes) == (1, 100)
    one.end(Ending("stop"), 1.0)
    store.retire(one)

    assert (store.unfinished, store.prompt_bytes) == (0, 0)
