"""Who gets which rank."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.group_record import Member
from ryzanstein_coordinator.placement import backend_of, likely_rank, may_hold_all, natural_key, place
from ryzanstein_coordinator.worker_record import ShardKey

from .cluster_builders import gpu, shard, worker


def ids(members: Iterable[Member]) -> list[str]:
    return [member.worker_id for member in members]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 12), size=st.integers(1, 6))
def test_any_order_of_arrival_gives_the_same_valid_placement(seed: int, count: int, size: int) -> None:
    rng = random.Random(seed)
    workers = [worker(f"w{i}", host_id=f"host{i % 3}", strikes=rng.randrange(2)) for i in range(count)]
    first = place("g0", size, workers)
    rng.shuffle(workers)
    second = place("g0", size, workers)
    assert first == second
    if count < size:
        assert first.members == ()
        assert f"{count} of {size}" in first.reason
        return
    assert [member.rank for member in first.members] == list(range(size))
    assert len(set(ids(first.members))) == size


def test_ranks_follow_the_natural_order_of_ids() -> None:
    workers = [worker(f"w{i}") for i in (10, 2, 1)]
    assert ids(place("g0", 3, workers).members) == ["w1", "w2", "w10"]
    assert natural_key("w2") < natural_key("w10")


def test_survivors_keep_their_ranks_and_the_spare_fills_the_gap() -> None:
    workers = [worker("w0", group="g0", shard=shard(0)), worker("w2", shard=shard(0))]
    placement = place("g0", 2, workers, previous=("w0", "w1"))
    assert ids(placement.members) == ["w0", "w2"]


def test_a_restarted_worker_gets_the_rank_of_its_id_back() -> None:
    workers = [worker("w0"), worker("w1")]
    placement = place("g0", 2, workers, previous=("w1", "w0"))
    assert ids(placement.members) == ["w1", "w0"]


def test_a_restarted_worker_is_preferred_to_a_stranger_but_not_to_a_loaded_spare_of_its_rank() -> None:
    restarted, spare = worker("w1"), worker("w9", shard=shard(1))
    survivor = worker("w0", group="g0", shard=shard(0))
    placement = place("g0", 2, [survivor, restarted, spare], previous=("w0", "w1"))
    assert ids(placement.members) == ["w0", "w9"]


def test_a_worker_that_was_a_culprit_gives_way_to_a_spare() -> None:
    workers = [
        worker("w0", group="g0", shard=shard(0)),
        worker("w1", group="g0", shard=shard(1), strikes=1),
        worker("w2"),
    ]
    assert ids(place("g0", 2, workers, previous=("w0", "w1")).members) == ["w0", "w2"]
    without_spare = place("g0", 2, workers[:2], previous=("w0", "w1"))
    assert ids(without_spare.members) == ["w0", "w1"]


def test_a_worker_that_is_drained_serves_only_when_nobody_else_can() -> None:
    workers = [worker("w0", draining=True, group="g0", shard=shard(0)), worker("w1"), worker("w2", strikes=5)]
    assert set(ids(place("g0", 2, workers).members)) == {"w1", "w2"}
    assert set(ids(place("g0", 3, workers).members)) == {"w0", "w1", "w2"}


def test_somebody_who_can_read_the_checkpoint_serves_where_the_others_lack_weights() -> None:
    empty = replace(shard(1), loaded=False, has_files=False)
    survivor, spare = (
        worker("w1", group="g0", shard=empty),
        worker("w2", shard=replace(empty, key=shard(0).key)),
    )
    reader = worker("w3", shard=shard(0), strikes=9)
    assert ids(place("g0", 2, [survivor, spare, reader], ("w0", "w1")).members) == ["w3", "w1"]
    unknown = worker("w4", strikes=9)
    assert ids(place("g0", 2, [survivor, spare, unknown], ("w0", "w1")).members) == ["w4", "w1"]
    assert ids(place("g0", 2, [survivor, spare, unknown, reader], ("w0", "w1")).members) == ["w3", "w1"]
    assert ids(place("g0", 2, [survivor, spare], ("w0", "w1")).members) == ["w2", "w1"]


def test_ranks_that_hold_their_own_weights_need_nobody_who_can_read() -> None:
    holding = [worker(f"w{rank}", shard=replace(shard(rank), has_files=False)) for rank in (0, 1)]
    assert may_hold_all(holding)
    assert not may_hold_all(holding[::-1]), "each another's"
    reader = worker("w2", shard=shard(0))
    assert ids(place("g0", 2, [*holding, reader]).members) == ["w0", "w1"]


def test_a_group_stays_on_one_host_where_it_can() -> None:
    workers = [worker("a0", host_id="a"), *(worker(f"b{i}", host_id="b") for i in range(3))]
    assert set(ids(place("g0", 3, workers).members)) == {"b0", "b1", "b2"}


def test_devices_of_two_kinds_are_not_mixed() -> None:
    workers = [worker("c0"), worker("c1"), worker("g0", device=gpu(0)), worker("g1", device=gpu(1))]
    assert ids(place("g0", 2, workers).members) == ["g0", "g1"]
    assert place("g0", 3, workers).members == ()


def test_who_is_missing_is_named() -> None:
    placement = place("g0", 2, [worker("w0", group="g0")], previous=("w0", "w1"))
    assert placement.reason == "waiting for a replacement of rank 1 (w1): 1 of 2 workers are ready"


def test_spares_spread_over_the_ranks() -> None:
    held: list[ShardKey] = []
    for _ in range(4):
        held.append(ShardKey(likely_rank(3, held), 3, 256))
    assert [key.rank for key in held] == [0, 1, 2, 0]


def test_the_backend_follows_from_devices_and_hosts() -> None:
    assert backend_of([worker("a"), worker("b")]) == "shared_memory"
    assert backend_of([worker("a"), worker("b", host_id="beta")]) == "gloo"
    assert backend_of([worker("a", device=gpu(0)), worker("b", device=gpu(1))]) == "nccl"
    assert backend_of([worker("a", device=gpu(0)), worker("b", device=gpu(0))]) == "gloo"
    both = [worker("a", device=gpu(0, uuid="GPU-a")), worker("b", device=gpu(0, uuid="GPU-b"))]
    assert backend_of(both) == "nccl", "each process sees its own as cuda:0"
