"""Who is next: priorities first, then equal shares of tokens for all owners that wait, then as they came."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.dispatch import tokens_ahead
from ryzanstein_coordinator.requests import RequestRecord
from ryzanstein_coordinator.waiting_queue import WaitingQueue

from .test_decisions import record


def drain(queue: WaitingQueue) -> list[RequestRecord]:
    order = []
    while (one := queue.pop()) is not None:
        order.append(one)
    return order


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

    assert drain(queue) == sorted(staying, key=lambda r: (-r.spec.priority, r.arrival))


def test_those_who_left_do_not_pile_up_behind_one_who_stays() -> None:
    queue = WaitingQueue()
    queue.push(record("stays"))
    for arrival in range(1, 5000):
        one = record(str(arrival), arrival=arrival)
        queue.push(one)
        queue.discard(one)

    (lane,) = queue._lanes.values()
    assert len(lane._heap) < 200


def test_streams_that_had_begun_go_first_whoever_owns_them() -> None:
    queue = WaitingQueue()
    queue.push(record("urgent", arrival=0, priority=5))
    queue.push(record("long", arrival=1, prompt=50, emitted=9, owner="a"))
    queue.push(record("short", arrival=2, prompt=5, emitted=1, owner="b"))
    assert [one.spec.request_id for one in drain(queue)] == ["short", "long", "urgent"]


def test_what_is_pushed_again_gets_the_place_that_it_deserves_now() -> None:
    queue = WaitingQueue()
    first, second = record("first", arrival=0), record("second", arrival=1)
    for one in (first, second, second, second):
        queue.push(one)
    second.output.extend([30])
    queue.push(second)
    assert len(queue) == 2
    assert drain(queue) == [second, first]


# --- shares


class Service:
    """Serves a queue: so many requests run at once, each gets a token per step."""

    def __init__(self, places: int) -> None:
        self.queue = WaitingQueue()
        self.places = places
        self.running: dict[RequestRecord, int] = {}
        self.served: Counter[str] = Counter()
        self._arrivals = 0

    def ask(self, owner: str, prompt: int, output: int, priority: int = 0) -> None:
        self._arrivals += 1
        one = record(
            f"r{self._arrivals}",
            arrival=self._arrivals,
            prompt=prompt,
            owner=owner,
            max_tokens=output,
            priority=priority,
        )
        self.queue.push(one)

    def waiting(self, owner: str) -> int:
        return sum(one.spec.owner == owner for one in self.queue.records())

    def step(self) -> None:
        while len(self.running) < self.places and (one := self.queue.pop()) is not None:
            self._count(one.spec.owner, len(one.spec.prompt))
            self.running[one] = one.spec.sampling.max_tokens
        for one in list(self.running):
            self._count(one.spec.owner, 1)
            self.running[one] -= 1
            if not self.running[one]:
                del self.running[one]

    def _count(self, owner: str, tokens: int) -> None:
        self.served[owner] += tokens
        self.queue.served(owner, tokens)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(
    small=st.lists(SIZES, min_size=1, max_size=8),
    large=st.lists(SIZES, min_size=1, max_size=8),
    places=st.integers(1, 6),
)
def test_owners_who_always_have_something_waiting_get_equally_many_tokens(
    small: list[tuple[int, int]], large: list[tuple[int, int]], places: int
) -> None:
    service = Service(places)
    mixes = {"a": deque(small), "b": deque(large), "c": deque([(7, 7)])}
    # What may run when a turn is given, and the request that it goes to.
    bound = (places + 1) * 80
    for _ in range(300):
        for owner, mix in mixes.items():
            while service.waiting(owner) <= places:
                service.ask(owner, *mix[0])
                mix.rotate()
        service.step()
        served = [service.served[owner] for owner in mixes]
        assert max(served) - min(served) <= bound


def test_a_key_with_many_requests_does_not_keep_another_waiting() -> None:
    service = Service(2)
    for _ in range(1000):
        service.ask("crowd", 10, 10)
    for _ in range(100):
        service.step()
    service.ask("single", 10, 10)
    served = service.served["crowd"]
    while service.served["single"] < 20:
        service.step()
    assert service.served["crowd"] - served <= 4 * 20


def test_a_key_that_was_idle_has_saved_nothing_up() -> None:
    service = Service(2)
    for _ in range(400):
        service.ask("busy", 10, 10)
    for _ in range(300):
        service.step()
    busy = service.served["busy"]
    assert busy > 1000
    for _ in range(400):
        service.ask("back", 10, 10)
    for _ in range(300):
        service.step()
    assert service.served["back"] == pytest.approx(service.served["busy"] - busy, abs=3 * 20)


def test_a_key_does_not_pay_for_what_nobody_else_wanted() -> None:
    service = Service(2)
    service.ask("alone", 1, 5000)
    for _ in range(4000):
        service.step()
    for _ in range(200):
        service.ask("alone", 10, 10)
        service.ask("new", 10, 10)
    before = service.served["alone"]
    for _ in range(600):
        service.step()
    assert service.served["alone"] - before == pytest.approx(service.served["new"], abs=3 * 20)


def test_priority_comes_before_shares() -> None:
    service = Service(1)
    for _ in range(5):
        service.ask("a", 10, 10, priority=1)
        service.ask("b", 1, 1)
    order = [(one.spec.owner, one.spec.priority) for one in drain(service.queue)]
    assert order == [("a", 1)] * 5 + [("b", 0)] * 5


def test_shares_are_kept_whatever_comes_and_goes() -> None:
    """Cancelled requests, owners that come and go: nobody who waits is left out, and nothing is kept of the gone."""
    draw, service = random.Random(3), Service(3)
    for step in range(2000):
        if draw.random() < 0.2:
            owner = f"o{draw.randrange(6)}"
            for _ in range(draw.randrange(1, 4)):
                service.ask(owner, draw.randrange(1, 20), draw.randrange(1, 20), draw.randrange(2))
        waiting = list(service.queue.records())
        if waiting and draw.random() < 0.2:
            service.queue.discard(draw.choice(waiting))
        service.step()
        if step % 500 == 499:
            while service.running or len(service.queue):
                service.step()
            assert service.queue._shares._tokens == {}
            assert not service.queue._shares._waiting


# --- what is before a new one


def test_before_a_new_request_go_streams_that_had_begun_higher_priorities_and_rounds_of_turns() -> None:
    waiting = [
        record("begun", emitted=4, owner="x"),
        record("urgent", priority=1, owner="x"),
        *(record(f"own{i}", owner="me") for i in range(2)),
        *(record(f"crowd{i}", owner="crowd") for i in range(50)),
        record("few", owner="few", max_tokens=3),
        record("lower", priority=-1, owner="me"),
    ]
    assert tokens_ahead(waiting, "me", 0, 10.0) == (10 - 4) + 10 + 20 + 20 + 3
    assert tokens_ahead(waiting, "nobody", 0, 10.0) == (10 - 4) + 10
    assert tokens_ahead(waiting, "nobody", 2, 10.0) == 10 - 4
    assert tokens_ahead(waiting, "me", 0, None) == 0.0
    waiting[2].spec.sampling.ignore_eos = True  # it can't stop before its 100 tokens
    assert tokens_ahead(waiting, "me", 0, 10.0) == (10 - 4) + 10 + 110 + 110 + 3
