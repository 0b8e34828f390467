"""A group shrinks when nobody comes and grows when somebody does, told as scripts over a simulated cluster."""

from __future__ import annotations

import itertools

import pytest

from ryzanstein_coordinator import actions, events
from ryzanstein_coordinator.control_plane import group_ids
from ryzanstein_coordinator.group_record import Cause, GroupRecord, GroupState, Phase, Recovery
from ryzanstein_coordinator.worker_record import ShardKey

from .cluster_builders import FOR_TWO_RANKS_ONLY
from .simulated_cluster import SimulatedCluster
from .test_control_plane import recovery_of, serving


def group_of(cluster: SimulatedCluster, index: int = 0) -> GroupRecord:
    return cluster.state.groups[index]


def shrunk(**changes: object) -> SimulatedCluster:
    """One of two ranks serves; w1 is dead, and nobody started it again."""
    cluster = serving(0, **{"spares": 0, "replacement_wait_s": 1.0, **changes})
    cluster.kill("w1", seen_after_s=0.001)
    assert cluster.run_until(lambda: is_degraded(cluster), 3.0)
    return cluster


def is_degraded(cluster: SimulatedCluster) -> bool:
    return group_of(cluster).state is GroupState.DEGRADED


def is_whole(cluster: SimulatedCluster) -> bool:
    return all(group.state is GroupState.SERVING for group in cluster.state.groups)


def resizes(cluster: SimulatedCluster) -> list[int]:
    """The sizes of the epochs that stood, without repetition."""
    joins = {a.epoch: len(a.members) for _, a in cluster.history if isinstance(a, actions.JoinGroup)}
    stood = [joins[a.epoch] for _, a in cluster.history if isinstance(a, actions.AnnounceReady)]
    return [size for size, _ in itertools.groupby(stood)]


def test_a_group_that_nobody_comes_to_goes_on_with_fewer_ranks() -> None:
    cluster = serving(spares=0, replacement_wait_s=1.0)
    promised = group_of(cluster).max_model_len
    cluster.kill("w1", seen_after_s=0.001)
    cluster.run_for(0.9)
    assert group_of(cluster).state is GroupState.RECOVERING
    assert cluster.run_until(lambda: is_degraded(cluster), 1.0)
    group = group_of(cluster)
    assert (group.size, group.full, group.max_model_len) == (1, 2, promised)
    assert group.reason == "serves with 1 of 2 ranks: nobody took the place of rank 1 (w1) within 1 s"
    assert cluster.control.monitor.readiness(cluster.now_s, cluster.state) == (
        True,
        f"group g0 serves with 1 of 2 ranks in epoch {group.epoch}",
    )
    recovery = recovery_of(cluster)
    assert (recovery.cause, recovery.epoch) == (Cause.PROCESS, group.epoch)
    assert recovery.culprit is not None
    assert (recovery.culprit.worker_id, recovery.culprit.rank) == ("w1", 1)
    assert recovery.reason == "w1 (rank 1) ended: killed; goes on with 1 of 2 ranks"


def test_it_grows_back_when_the_standby_has_loaded_and_stayed() -> None:
    cluster = shrunk()
    cluster.start("w1")
    assert cluster.run_until(lambda: bool(cluster.record("w1").shards), 2.0)
    assert cluster.record("w1").keys == (ShardKey(1, 2, 256),)
    assert is_degraded(cluster)
    cluster.run_for(0.5)
    assert group_of(cluster).reason.endswith("w1 is to stay for 3 s before it gets rank 1")
    assert cluster.run_until(lambda: is_whole(cluster), 4.0)
    group, recovery = group_of(cluster), recovery_of(cluster)
    assert cluster.members() == ["w0", "w1"]
    assert (group.size, group.is_short, group.reason) == (2, False, f"epoch {group.epoch} stands")
    assert (recovery.cause, recovery.culprit) == (Cause.RESIZE, None)
    assert (recovery.epoch, recovery.reason) == (group.epoch, "grows from 1 to 2 ranks with w1")
    assert cluster.now_s - cluster.record("w1").registered_at_s >= 3.0
    assert resizes(cluster) == [2, 1, 2]


def test_streams_stall_for_the_incumbents_load_only() -> None:
    cluster = shrunk()
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 8.0)
    lost_at = max(t for t, a in cluster.history if isinstance(a, actions.AnnounceLost))
    loads = [a for t, a in cluster.history if isinstance(a, actions.LoadShard) and t >= lost_at]
    before = [a for t, a in cluster.history if isinstance(a, actions.LoadShard) and t < lost_at]
    assert {a.worker_id: a.key for a in loads} == {"w0": ShardKey(0, 2, 256), "w1": ShardKey(1, 2, 256)}
    assert loads[1].key in [a.key for a in before]  # it holds it: it answers at once


def test_a_worker_that_comes_and_goes_does_not_make_the_group_change_its_size() -> None:
    cluster = shrunk()
    epoch = group_of(cluster).epoch
    for _ in range(10):
        cluster.start("w1")
        cluster.run_for(2.0)
        cluster.kill("w1")
        cluster.run_for(1.0)
    assert group_of(cluster).epoch == epoch
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 5.0)


def test_a_worker_that_dies_whenever_it_has_a_rank_is_trusted_ever_less() -> None:
    cluster = shrunk()
    spans = []
    for _ in range(4):
        cluster.start("w1")
        since_s = cluster.now_s
        assert cluster.run_until(lambda: is_whole(cluster), 60.0)
        spans.append(cluster.now_s - since_s)
        cluster.run_for(1.0)
        cluster.kill("w1")
        assert cluster.run_until(lambda: is_degraded(cluster), 5.0)
    assert all(later > 1.7 * earlier for earlier, later in itertools.pairwise(spans))
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 60.0)
    cluster.run_for(cluster.config.stable_after_s + 1.0)
    assert group_of(cluster).shrinks == 0


def test_where_the_ledger_does_not_allow_fewer_ranks_the_group_waits_and_says_what_would_fit() -> None:
    cluster = serving(spares=0, replacement_wait_s=1.0, kv_cache_bytes=FOR_TWO_RANKS_ONLY)
    cluster.kill("w1", seen_after_s=0.001)
    cluster.run_for(10.0)
    group = group_of(cluster)
    assert (group.state, group.size) == (GroupState.WAITING, 2)
    assert group.reason == (
        "waiting for a replacement of rank 1 (w1): 1 of 2 workers are ready; none came within 1 s; "
        "1 rank can't take over: a sequence of 256 tokens does not fit into a cache of 112 tokens: "
        "--kv-cache-memory 1MiB fits"
    )
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 2.0)


def test_a_group_that_never_stood_waits_for_its_full_size() -> None:
    cluster = serving(spares=0, replacement_wait_s=1.0)
    fresh = SimulatedCluster(cluster.config)
    fresh.start("w0")
    fresh.run_for(60.0)
    group = group_of(fresh)
    assert (group.state, group.size) == (GroupState.WAITING, 2)
    assert group.reason == "waiting for workers: 1 of 2 workers are ready"


def test_the_standby_dies_while_the_group_grows_and_streams_wait_for_nobody() -> None:
    cluster = shrunk(replacement_wait_s=1.0)
    cluster.start("w1")
    assert cluster.run_until(lambda: group_of(cluster).phase is Phase.FORMING, 8.0)
    assert group_of(cluster).size == 2
    since_s = cluster.now_s
    cluster.kill("w1", seen_after_s=0.01)
    assert cluster.run_until(lambda: is_degraded(cluster), 3.0)
    assert cluster.now_s - since_s < 0.9  # no replacement was waited for
    recovery = recovery_of(cluster)
    assert (recovery.cause, recovery.culprit) == (Cause.RESIZE, None)
    assert recovery.reason.startswith("grows from 1 to 2 ranks with w1, in vain: ")
    assert recovery.reason.endswith("; goes on with 1 of 2 ranks")


def test_the_incumbent_dies_while_the_group_grows() -> None:
    cluster = shrunk()
    cluster.start("w1")
    assert cluster.run_until(lambda: group_of(cluster).phase is Phase.FORMING, 8.0)
    cluster.kill("w0", seen_after_s=0.01)
    assert cluster.run_until(lambda: is_degraded(cluster), 3.0)
    assert cluster.members() == ["w1"]
    recovery = recovery_of(cluster)
    assert recovery.cause is Cause.PROCESS
    assert recovery.culprit is not None
    assert recovery.culprit.worker_id == "w0"
    cluster.start("w0")
    assert cluster.run_until(lambda: is_whole(cluster), 20.0)


def test_ranks_that_cannot_form_make_way_for_fewer() -> None:
    cluster = serving(spares=0, replacement_wait_s=2.0)
    cluster.cannot_join.add("w1")
    cluster.kill("w0")
    cluster.start("w0")
    assert cluster.run_until(lambda: is_degraded(cluster), 10.0)
    assert cluster.members() == ["w0"]
    assert "2 ranks could not form within 2 s: w1 could not join" in group_of(cluster).reason
    epoch = group_of(cluster).epoch
    cluster.run_for(5.0)
    assert group_of(cluster).epoch == epoch  # its strikes keep it out for a while
    cluster.cannot_join.clear()
    assert cluster.run_until(lambda: is_whole(cluster), 300.0)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_of_four_ranks_as_many_go_on_as_divide_the_model(lost: int) -> None:
    cluster = serving(tensor_parallel_size=4, spares=0, replacement_wait_s=1.0)
    victims = cluster.members()[-lost:]
    for victim in victims:
        cluster.kill(victim, seen_after_s=0.001)
    assert cluster.run_until(lambda: is_degraded(cluster), 4.0)
    assert group_of(cluster).size == {1: 2, 2: 2, 3: 1}[lost]
    cluster.start(*victims)
    assert cluster.run_until(lambda: is_whole(cluster), 10.0)
    assert resizes(cluster) == [4, {1: 2, 2: 2, 3: 1}[lost], 4]


def test_a_group_that_is_short_loses_one_more() -> None:
    cluster = serving(tensor_parallel_size=4, spares=0, replacement_wait_s=1.0)
    for victim in ("w2", "w3"):
        cluster.kill(victim, seen_after_s=0.001)
    assert cluster.run_until(lambda: is_degraded(cluster), 4.0)
    cluster.kill(cluster.members()[0], seen_after_s=0.001)
    assert cluster.run_until(lambda: group_of(cluster).size == 1 and is_degraded(cluster), 4.0)
    assert resizes(cluster) == [4, 2, 1]


def test_a_standby_is_given_to_the_group_that_does_not_serve_at_all() -> None:
    cluster = serving(data_parallel_size=2, spares=0, replacement_wait_s=1.0)
    first, second = cluster.members("g0"), cluster.members("g1")
    cluster.kill(first[1], seen_after_s=0.001)
    assert cluster.run_until(lambda: is_degraded(cluster), 4.0)
    for victim in second:
        cluster.kill(victim, seen_after_s=0.001)
    cluster.start(first[1])
    assert cluster.run_until(lambda: group_of(cluster, 1).state is GroupState.DEGRADED, 10.0)
    assert cluster.members("g1") == [first[1]]
    assert group_of(cluster).size == 1
    cluster.start(*second)
    assert cluster.run_until(lambda: is_whole(cluster), 30.0)
    assert group_ids(cluster.config) == ("g0", "g1")


def test_an_epoch_in_reserve_that_could_not_be_written_is_written_later() -> None:
    cluster = serving(spares=0, replacement_wait_s=1.0)
    cluster.disk_works = False
    cluster.kill("w1", seen_after_s=0.001)
    assert cluster.run_until(lambda: is_degraded(cluster), 4.0)
    cluster.start("w1")
    cluster.run_for(20.0)
    assert is_degraded(cluster)  # streams would have to wait for the disk
    cluster.disk_works = True
    assert cluster.run_until(lambda: is_whole(cluster), 15.0)


def test_a_cluster_that_is_about_to_stop_does_not_grow() -> None:
    cluster = shrunk()
    cluster.send(events.DrainCluster())
    cluster.start("w1")
    cluster.run_for(10.0)
    assert group_of(cluster).size == 1


def test_a_report_of_the_first_token_completes_the_record_of_a_growth() -> None:
    cluster = shrunk()
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 8.0)
    epoch = group_of(cluster).epoch
    cluster.send(events.RequestsResumed("g0", epoch, 3))
    cluster.send(events.FirstToken("g0", epoch, cluster.now_s))
    recovery: Recovery = recovery_of(cluster)
    assert (recovery.requests_resumed, recovery.first_token_at_s) == (3, cluster.now_s)
    assert recovery.members[0].worker_id == "w0"
