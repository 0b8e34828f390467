"""How many ranks a group goes on with, what it grows to, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ryzanstein_coordinator.config import OrchestratorConfig
from ryzanstein_coordinator.failure_recovery import FailureRecoveryManager
from ryzanstein_coordinator.group_record import EngineBounds, GroupRecord, GroupState, Member, Phase
from ryzanstein_coordinator.resizing import GROW_LIMIT_S, Resizing, served_by
from ryzanstein_coordinator.resource_allocator import ResourceAllocator
from ryzanstein_coordinator.worker_record import ShardKey, WorkerRecord

from .cluster_builders import FOR_TWO_RANKS_ONLY, configuration, gpu, shard, tiny_model, worker

LENGTH = 256


def resizing_of(config: OrchestratorConfig) -> Resizing:
    return Resizing(config, ResourceAllocator(config, tiny_model()))


def bounds_of(config: OrchestratorConfig, size: int) -> EngineBounds:
    workers = [worker(f"w{i}") for i in range(size)]
    allocator = ResourceAllocator(config, tiny_model())
    bounds = allocator.plan(size, tuple(allocator.share(w, workers) for w in workers)).bounds
    assert bounds is not None
    return bounds


def vacant(size: int, config: OrchestratorConfig, **changes: Any) -> GroupRecord:
    """A group of `size` ranks, as many as it is meant to have, that has lost some of them."""
    fields: dict[str, Any] = {
        "group_id": "g0",
        "size": size,
        "full_size": size,
        "limits": bounds_of(config, size),
        "previous": tuple(f"w{i}" for i in range(size)),
        "has_served": True,
    }
    return GroupRecord(**{**fields, **changes})


def short(config: OrchestratorConfig, full: int = 2, **changes: Any) -> GroupRecord:
    """One rank of `full` serves since 100."""
    fields: dict[str, Any] = {
        "group_id": "g0",
        "size": 1,
        "full_size": full,
        "phase": Phase.SERVING,
        "members": (Member(0, "w0", "w0-1"),),
        "limits": bounds_of(config, 1),
        "planned": {full: bounds_of(config, full), 1: bounds_of(config, 1)},
        "serving_since_s": 100.0,
        "shrinks": 1,
        "shortfall": "nobody took the place of rank 1 (w1) within 30 s",
    }
    return GroupRecord(**{**fields, **changes})


def incumbent(**changes: Any) -> WorkerRecord:
    return worker("w0", **{"group": "g0", "rank": 0, "shard": shard(0, 1), **changes})


def standby(name: str = "w1", **changes: Any) -> WorkerRecord:
    """Came at 100 and holds rank 1 of 2."""
    return worker(name, **{"registered_at_s": 100.0, "shard": shard(1, 2), **changes})


@pytest.mark.parametrize(("size", "left", "smaller"), [(2, 1, 1), (4, 3, 2), (4, 1, 1), (8, 7, 4)])
def test_a_group_goes_on_with_the_largest_size_that_divides_the_model(
    size: int, left: int, smaller: int
) -> None:
    config = configuration(tensor_parallel_size=size)
    workers = [worker(f"w{i}", group="g0") for i in range(left)]
    found = resizing_of(config).smaller(vacant(size, config), workers, workers)
    assert found.size == smaller
    assert found.limits is not None
    assert found.limits.max_model_len == LENGTH


def test_without_any_worker_there_is_no_size_and_nothing_to_say() -> None:
    config = configuration()
    found = resizing_of(config).smaller(vacant(2, config), [], [])
    assert (found.limits, found.reason) == (None, "")


def test_fewer_ranks_that_hold_less_than_was_promised_do_not_take_over() -> None:
    config = configuration(kv_cache_bytes=FOR_TWO_RANKS_ONLY)
    assert bounds_of(config, 2).max_model_len == LENGTH
    found = resizing_of(config).smaller(vacant(2, config), [worker("w0")], [worker("w0")])
    assert found.limits is None
    assert found.reason == (
        "1 rank can't take over: a sequence of 256 tokens does not fit into a cache of 112 tokens: "
        "--kv-cache-memory 1MiB fits"
    )


def test_fewer_ranks_that_do_not_hold_the_weights_do_not_take_over_either() -> None:
    config = configuration()
    small = gpu(total_bytes=700 * 2**20)
    candidates = [worker("w0", device=small)]
    found = resizing_of(config).smaller(vacant(2, config), candidates, candidates)
    assert found.limits is None
    assert "1 rank can't take over: rank 0 needs" in found.reason


def test_a_shorter_context_that_was_promised_is_enough() -> None:
    config = configuration(kv_cache_bytes=FOR_TWO_RANKS_ONLY, max_model_len=112)
    found = resizing_of(config).smaller(vacant(2, config), [worker("w0")], [worker("w0")])
    assert found.limits is not None
    assert found.limits.max_model_len == 112


def test_workers_that_hold_weights_of_which_nobody_has_files_can_change_no_size() -> None:
    config = configuration()
    blind = [worker("w0", shard=replace(shard(0), has_files=False))]
    found = resizing_of(config).smaller(vacant(2, config), blind, blind)
    assert found.reason == "1 rank can't take over: none of the workers can read the checkpoint"


def test_a_group_that_is_whole_does_not_grow() -> None:
    config = configuration()
    whole = short(config, size=1, full_size=1)
    assert resizing_of(config).growth(1000.0, whole, [incumbent(), standby()]) == (None, "")


def test_a_standby_loads_its_part_of_the_larger_group_first() -> None:
    config = configuration()
    growth, _ = resizing_of(config).growth(1000.0, short(config), [incumbent(), standby(shard=shard(0, 1))])
    assert growth is not None
    assert (growth.size, growth.limits) == (2, bounds_of(config, 2))
    assert growth.shards == {"w1": ShardKey(1, 2, LENGTH)}
    assert (growth.ready, growth.waits_for) == (False, "w1 loads rank 1 of 2")


@pytest.mark.parametrize(
    ("strikes", "shrinks", "patience_s"),
    [(0, 1, 3.0), (1, 1, 6.0), (0, 2, 6.0), (2, 3, 48.0), (0, 4000, GROW_LIMIT_S)],
)
def test_a_standby_must_have_been_there_for_longer_the_worse_it_went_before(
    strikes: int, shrinks: int, patience_s: float
) -> None:
    config = configuration(grow_after_s=3.0)
    resizing, group = resizing_of(config), short(config, shrinks=shrinks)
    workers = [incumbent(), standby(strikes=strikes)]
    early, _ = resizing.growth(100.0 + patience_s - 0.1, group, workers)
    late, _ = resizing.growth(100.0 + patience_s + 0.1, group, workers)
    assert early is not None
    assert late is not None
    assert early.waits_for == f"w1 is to stay for {patience_s:g} s before it gets rank 1"
    assert late.ready


def test_the_time_of_a_standby_begins_anew_when_the_group_had_to_shrink_again() -> None:
    config = configuration(grow_after_s=3.0)
    growth, _ = resizing_of(config).growth(
        1002.0, short(config, serving_since_s=1000.0), [incumbent(), standby()]
    )
    assert growth is not None
    assert not growth.ready


def test_all_that_are_there_are_waited_for_so_that_streams_stall_once() -> None:
    config = configuration(tensor_parallel_size=4)
    group = short(config, full=4)
    early = [standby(f"w{rank}", shard=shard(rank, 4)) for rank in (1, 2)]
    late = standby("w3", registered_at_s=998.0, shard=shard(3, 4))
    growth, _ = resizing_of(config).growth(1000.0, group, [incumbent(), *early, late])
    assert growth is not None
    assert (growth.size, growth.ready) == (4, False)
    fewer, _ = resizing_of(config).growth(1000.0, group, [incumbent(), *early])
    assert fewer is not None
    assert fewer.size == 2


def test_nothing_is_planned_while_a_rank_is_in_doubt_or_about_to_leave() -> None:
    config = configuration()
    resizing, group = resizing_of(config), short(config)
    assert resizing.growth(1000.0, group, [incumbent(suspect=True), standby()]) == (None, "")
    assert resizing.growth(1000.0, group, [incumbent(draining=True), standby()]) == (None, "")
    assert resizing.growth(1000.0, group, [incumbent(), standby(suspect=True)]) == (None, "")
    assert resizing.growth(1000.0, group, [incumbent(), standby(draining=True)]) == (None, "")


def test_a_larger_group_that_does_not_fit_is_not_formed_and_the_reason_is_told() -> None:
    config = configuration()
    group = short(config, planned={1: bounds_of(config, 1)})
    devices = {"w0": gpu(0), "w1": gpu(1, total_bytes=610 * 2**20)}
    workers = [incumbent(device=devices["w0"]), standby(device=devices["w1"])]
    growth, reason = resizing_of(config).growth(1000.0, group, workers)
    assert growth is None
    assert reason.startswith("2 ranks can't take over: rank 1 needs")


def test_a_group_with_fewer_ranks_says_so_in_its_state_and_reason() -> None:
    group = short(configuration())
    assert group.state is GroupState.DEGRADED
    assert served_by(group) == "serves with 1 of 2 ranks: nobody took the place of rank 1 (w1) within 30 s"


def test_ranks_that_fail_to_form_for_as_long_as_a_replacement_is_waited_for_are_as_good_as_gone() -> None:
    config = configuration(replacement_wait_s=30.0)
    manager = FailureRecoveryManager(config)
    group = vacant(2, config, failures=2, vacant_since_s=100.0)
    assert not manager.in_vain(129.0, group)
    assert manager.in_vain(130.0, group)
    assert not manager.in_vain(130.0, replace(group, failures=1))
    assert not manager.in_vain(130.0, replace(group, has_served=False))
