"""The life of groups and workers, told as scripts over a simulated cluster."""

from __future__ import annotations

import itertools

import pytest

from ryzanstein_coordinator import actions, events
from ryzanstein_coordinator.group_record import Cause, GroupState, Phase, Recovery
from ryzanstein_coordinator.state import worker_state
from ryzanstein_coordinator.worker_record import FaultReport, WorkerState

from .cluster_builders import FOR_TWO_RANKS_ONLY, configuration, worker
from .simulated_cluster import SimulatedCluster


def serving(seed: int = 0, **changes: object) -> SimulatedCluster:
    """Two ranks that serve, and a spare that has loaded a shard."""
    cluster = SimulatedCluster(configuration(**changes), seed)
    names = [f"w{i}" for i in range(cluster.config.worker_count)]
    cluster.start(*names)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    cluster.run_for(2.0)
    return cluster


def recovery_of(cluster: SimulatedCluster) -> Recovery:
    recovery = cluster.state.groups[0].recovery
    assert recovery is not None
    return recovery


def state_of(cluster: SimulatedCluster, worker_id: str) -> WorkerState:
    record = cluster.record(worker_id)
    return worker_state(record, cluster.state.group(record.group or ""))


def test_a_group_goes_through_its_states_in_order() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    seen = [cluster.state.groups[0].state]
    cluster.start("w0")

    def watch() -> bool:
        if cluster.state.groups[0].state is not seen[-1]:
            seen.append(cluster.state.groups[0].state)
        return cluster.all_serve

    cluster.run_until(watch, 1.0)
    assert cluster.state.groups[0].reason == "waiting for workers: 1 of 2 workers are ready"
    cluster.start("w1")
    assert cluster.run_until(watch, 5.0)
    assert [state for state in seen if state is not GroupState.FORMING] == [
        GroupState.WAITING,
        GroupState.LOADING,
        GroupState.SERVING,
    ]
    assert GroupState.FORMING in seen
    assert cluster.members() == ["w0", "w1"]
    assert [state_of(cluster, w) for w in ("w0", "w1")] == [WorkerState.ACTIVE, WorkerState.ACTIVE]


def test_a_spare_stands_by_with_a_shard() -> None:
    cluster = serving()
    (spare,) = {"w0", "w1", "w2"} - set(cluster.members())
    assert state_of(cluster, spare) is WorkerState.STANDBY
    held = cluster.record(spare).shard
    assert held is not None
    assert held.key.size == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_replaced_by_the_spare_at_once(rank: int) -> None:
    cluster = serving()
    victim = cluster.members()[rank]
    epoch = cluster.state.groups[0].epoch
    cluster.kill(victim, seen_after_s=0.001)
    assert cluster.run_until(lambda: cluster.all_serve and cluster.state.groups[0].epoch > epoch, 2.0)
    recovery = recovery_of(cluster)
    assert (recovery.cause, recovery.epoch) == (Cause.PROCESS, cluster.state.groups[0].epoch)
    assert recovery.culprit is not None
    assert (recovery.culprit.worker_id, recovery.culprit.rank) == (victim, rank)
    assert victim not in cluster.members()
    assert state_of(cluster, victim) is WorkerState.LOST
    assert recovery.fenced_at_s is not None
    assert recovery.reformed_at_s is not None
    assert recovery.seen_at_s <= recovery.detected_at_s <= recovery.fenced_at_s <= recovery.reformed_at_s


def test_the_culprit_is_named_even_if_a_survivor_complains_first() -> None:
    cluster = serving()
    leader, follower = cluster.members()
    cluster.kill(follower, seen_after_s=0.03)  # after the leader's collective has failed
    cluster.run_for(1.0)
    recovery = recovery_of(cluster)
    assert recovery.culprit is not None
    assert recovery.culprit.worker_id == follower
    assert recovery.reason == f"{follower} (rank 1) ended: killed"
    assert leader in cluster.members()


def test_a_stopped_rank_is_found_by_its_lease_and_its_return_harms_nothing() -> None:
    cluster = serving()
    victim = cluster.members()[1]
    stopped_at_s = cluster.now_s
    cluster.stop(victim)
    assert cluster.run_until(lambda: cluster.state.groups[0].recovering, 2.0)
    assert cluster.now_s - stopped_at_s <= cluster.config.lease_ttl_s + 0.1
    assert cluster.run_until(lambda: cluster.all_serve, 2.0)
    epoch = cluster.state.groups[0].epoch
    assert recovery_of(cluster).cause is Cause.LEASE
    cluster.resume(victim)
    cluster.run_for(3.0)
    assert cluster.state.groups[0].epoch == epoch
    assert state_of(cluster, victim) is WorkerState.STANDBY
    assert cluster.processes[victim].inside is None


def test_a_late_heartbeat_makes_a_suspect_and_no_alarm() -> None:
    cluster = serving()
    victim = cluster.members()[0]
    epoch = cluster.state.groups[0].epoch
    cluster.stop(victim)
    assert cluster.run_until(lambda: cluster.record(victim).suspect, 2.0)
    cluster.resume(victim)
    cluster.run_for(2.0)
    assert not cluster.record(victim).suspect
    assert cluster.state.groups[0].epoch == epoch


def test_a_coordinator_that_was_stopped_itself_blames_nobody() -> None:
    cluster = serving()
    epoch = cluster.state.groups[0].epoch
    cluster.pause(60.0)
    cluster.run_for(2.0)
    assert cluster.all_serve
    assert cluster.state.groups[0].epoch == epoch


def test_the_time_in_which_the_coordinator_stood_still_is_no_time_of_a_recovery() -> None:
    cluster = serving()
    cluster.stop(cluster.members()[1])
    cluster.pause(60.0)
    assert cluster.run_until(lambda: cluster.state.groups[0].recovering, 5.0)
    recovery = recovery_of(cluster)
    assert recovery.cause is Cause.LEASE
    assert recovery.detected_at_s - recovery.seen_at_s <= cluster.config.lease_ttl_s


def test_without_a_spare_the_group_waits_for_the_replacement_and_says_so() -> None:
    cluster = serving(spares=0, replacement_wait_s=5.0, kv_cache_bytes=FOR_TWO_RANKS_ONLY)
    victim = cluster.members()[1]
    cluster.kill(victim, seen_after_s=0.001)
    cluster.run_for(1.0)
    group = cluster.state.groups[0]
    assert group.state is GroupState.RECOVERING
    assert group.reason.startswith(f"waiting for a replacement of rank 1 ({victim})")
    cluster.run_for(6.0)
    group = cluster.state.groups[0]
    assert group.state is GroupState.WAITING
    assert (
        "none came within 5 s; 1 rank can't take over: a sequence of 256 tokens does not fit" in group.reason
    )
    cluster.start(victim)
    assert cluster.run_until(lambda: cluster.all_serve, 3.0)
    assert cluster.members()[1] == victim


def test_a_stuck_rank_is_found_while_its_heartbeats_go_on() -> None:
    cluster = serving(progress_deadline_s=3.0)
    victim = cluster.members()[1]
    cluster.stick(victim)
    assert cluster.run_until(lambda: cluster.state.groups[0].recovering, 4.0)
    recovery = recovery_of(cluster)
    assert recovery.cause is Cause.STUCK
    assert recovery.culprit is not None
    assert recovery.culprit.worker_id == victim
    assert f"{victim} stands at all_reduce 0" in recovery.reason
    assert cluster.run_until(lambda: cluster.all_serve, 2.0)
    assert victim not in cluster.members()  # the spare is preferred


def test_a_worker_with_another_checkpoint_fails_visibly_and_the_others_go_on() -> None:
    cluster = SimulatedCluster(configuration(), refuses=frozenset({"w1"}))
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert set(cluster.members()) == {"w0", "w2"}
    cluster.run_for(1.0)
    assert state_of(cluster, "w1") is WorkerState.FAILED
    assert "another checkpoint" in cluster.record("w1").failed_reason


def test_a_drained_rank_is_replaced_before_its_process_ends() -> None:
    cluster = serving()
    leaving = cluster.members()[0]
    cluster.send(events.DrainWorker(leaving))
    assert cluster.processes[leaving].alive
    assert cluster.run_until(lambda: leaving not in cluster.state.workers, 2.0)
    assert cluster.all_serve
    assert leaving not in cluster.members()
    assert recovery_of(cluster).cause is Cause.DRAIN
    ready_at = next(t for t, a in reversed(cluster.history) if isinstance(a, actions.AnnounceReady))
    ended_at = next(t for t, a in cluster.history if isinstance(a, actions.DrainProcess))
    assert ready_at <= ended_at


def test_a_drained_standby_ends_at_once() -> None:
    cluster = serving()
    (spare,) = {"w0", "w1", "w2"} - set(cluster.members())
    epoch = cluster.state.groups[0].epoch
    cluster.send(events.DrainWorker(spare))
    cluster.run_for(0.5)
    assert spare not in cluster.state.workers
    assert cluster.state.groups[0].epoch == epoch


def test_two_ranks_at_once_come_back_with_their_replacements() -> None:
    cluster = serving()
    for victim in list(cluster.members()):
        cluster.kill(victim)
        cluster.start(victim)
    assert cluster.run_until(lambda: not cluster.all_serve, 1.0)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)


def test_a_death_while_the_group_forms_again_leads_to_one_more_epoch() -> None:
    cluster = serving(spares=2)
    first, second = cluster.members()
    cluster.kill(first, seen_after_s=0.001)
    assert cluster.run_until(lambda: cluster.state.groups[0].phase is Phase.FORMING, 1.0)
    cluster.kill(second, seen_after_s=0.001)
    assert cluster.run_until(lambda: cluster.all_serve, 3.0)
    assert set(cluster.members()).isdisjoint({first, second})
    assert recovery_of(cluster).culprit is not None
    assert recovery_of(cluster).culprit.worker_id == first  # type: ignore[union-attr]


def test_several_groups_recover_on_their_own() -> None:
    cluster = serving(data_parallel_size=2)
    first, second = cluster.state.groups
    victim = first.members[0].worker_id
    cluster.kill(victim, seen_after_s=0.001)
    cluster.run_for(2.0)
    assert cluster.all_serve
    assert cluster.state.groups[0].epoch > first.epoch
    assert cluster.state.groups[1].epoch == second.epoch
    assert cluster.state.groups[1].members == second.members


def test_an_epoch_that_cannot_be_stored_is_not_announced() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    cluster.disk_works = False
    cluster.start("w0", "w1")
    cluster.run_for(3.0)
    group = cluster.state.groups[0]
    assert (group.epoch, group.phase) == (0, Phase.FENCING)
    assert "epoch 1 can't be stored: the disk is full" in group.reason
    assert cluster.actions < 60
    cluster.disk_works = True
    assert cluster.run_until(lambda: cluster.all_serve, 15.0)


def test_an_epoch_in_reserve_spares_the_disk_in_an_emergency() -> None:
    cluster = serving()
    cluster.history.clear()
    cluster.kill(cluster.members()[1], seen_after_s=0.001)
    assert cluster.run_until(lambda: cluster.state.groups[0].recovering, 1.0)
    kinds = [type(action) for _, action in cluster.history]
    assert actions.CommitEpoch not in kinds
    assert actions.AbortWorker in kinds


def test_a_restarted_coordinator_goes_on_above_the_epochs_that_workers_saw() -> None:
    cluster = serving()
    epoch, members = cluster.state.groups[0].epoch, cluster.members()
    previous = {"g0": tuple(members)}
    cluster.state = cluster.control.initial(cluster.now_s, committed_epoch=0, previous=previous)
    cluster._highest.clear()
    for process in cluster.processes.values():  # their streams broke with the old coordinator
        process.stream = -1
        cluster._register(process)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert cluster.state.groups[0].epoch > epoch
    assert cluster.members() == members


def test_a_worker_gets_no_rank_before_it_has_said_what_it_is_in() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    for name in ("w0", "w1"):
        cluster.send(events.Registered(worker(name, stream=0, heard=False, registered_at_s=cluster.now_s)))
        cluster.send(events.StreamOpened(name, f"{name}-1", 1))
    assert cluster.state.groups[0].phase is Phase.VACANT
    assert {state_of(cluster, name) for name in ("w0", "w1")} == {WorkerState.JOINING}


def test_the_first_token_and_the_resumed_requests_complete_the_recovery() -> None:
    cluster = serving()
    cluster.kill(cluster.members()[1], seen_after_s=0.001)
    cluster.run_for(1.0)
    epoch = cluster.state.groups[0].epoch
    cluster.send(events.RequestsResumed("g0", epoch, 24))
    cluster.send(events.FirstToken("g0", epoch, cluster.now_s))
    cluster.send(events.FirstToken("g0", epoch, cluster.now_s + 1.0))
    recovery = recovery_of(cluster)
    assert (recovery.requests_resumed, recovery.first_token_at_s) == (24, cluster.now_s)


def test_a_group_that_cannot_form_tries_again_ever_more_slowly_and_says_why() -> None:
    cluster = SimulatedCluster(configuration(spares=0, backoff_s=0.5, backoff_limit_s=4.0))
    cluster.cannot_join.add("w1")
    cluster.start("w0", "w1")
    cluster.run_for(30.0)
    joins = [t for t, action in cluster.history if isinstance(action, actions.JoinGroup)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(joins)]
    assert 8 <= len(joins) <= 14
    assert pauses[0] < 0.2  # the first failure is answered at once
    assert max(pauses) < 4.5
    assert all(later > earlier - 0.2 for earlier, later in itertools.pairwise(pauses))
    reason = cluster.state.groups[0].reason
    assert "w1 could not join epoch" in reason
    assert "no shared memory; next attempt in 4.0 s" in reason
    cluster.cannot_join.clear()
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    epochs = [action.epoch for _, action in cluster.history if isinstance(action, actions.JoinGroup)]
    assert epochs == sorted(set(epochs))  # every attempt has an epoch of its own


def test_a_worker_that_cannot_join_gives_way_to_a_spare() -> None:
    cluster = SimulatedCluster(configuration())
    cluster.cannot_join.add("w1")
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert set(cluster.members()) == {"w0", "w2"}


def test_a_load_that_fails_is_tried_again_and_then_given_up() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    cluster.failing_loads["w1"] = 2
    cluster.start("w0", "w1")
    assert cluster.run_until(lambda: cluster.all_serve, 10.0)
    hopeless = SimulatedCluster(configuration(spares=0))
    hopeless.failing_loads["w1"] = 1000
    hopeless.start("w0", "w1")
    hopeless.run_for(20.0)
    assert state_of(hopeless, "w1") is WorkerState.FAILED
    assert hopeless.record("w1").failed_reason == "w1 could not load rank 1: out of memory"
    assert hopeless.failing_loads["w1"] == 997
    hopeless.failing_loads.clear()
    hopeless.kill("w1")
    hopeless.start("w1")  # a new process is asked again
    assert hopeless.run_until(lambda: hopeless.all_serve, 10.0)


def test_a_worker_that_was_to_blame_before_may_fail_to_load_as_often_as_any_other() -> None:
    cluster = serving(spares=0)
    victim = cluster.members()[1]
    for failing_loads in (0, 0, 1):
        epoch = cluster.state.groups[0].epoch
        cluster.failing_loads[victim] = failing_loads
        cluster.processes[victim].fault = FaultReport(kind="engine", message="a bad moment", epoch=epoch)
        cluster._report(cluster.processes[victim])
        assert cluster.run_until(lambda: cluster.all_serve, 10.0)
    assert not cluster.record(victim).failed_reason


def test_a_heartbeat_stream_that_begins_anew_does_not_disturb_the_loading() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    cluster.start("w0", "w1")
    assert cluster.run_until(lambda: cluster.state.groups[0].phase is Phase.LOADING, 2.0)
    epoch, process = cluster.state.groups[0].epoch, cluster.processes["w1"]
    process.stream = 1000
    cluster.send(events.StreamOpened("w1", process.incarnation, process.stream))
    cluster._beat(process, process.stream)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert cluster.state.groups[0].epoch == epoch


def test_a_spare_that_fails_to_load_does_not_spin() -> None:
    cluster = SimulatedCluster(configuration())
    cluster.start("w0", "w1")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    cluster.failing_loads["w2"] = 1000
    cluster.start("w2")
    cluster.run_for(30.0)
    assert cluster.failing_loads["w2"] == 997
    assert state_of(cluster, "w2") is WorkerState.FAILED


def test_one_worker_with_files_is_enough_and_none_is_not() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    cluster.without_files.update({"w0", "w1"})
    cluster.start("w0", "w1")
    cluster.run_for(3.0)
    assert "no worker can read the checkpoint" in cluster.state.groups[0].reason
    assert cluster.actions < 30
    cluster.without_files.discard("w0")
    cluster.kill("w0")
    cluster.start("w0")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)


def test_a_long_lost_worker_is_forgotten() -> None:
    cluster = serving(forget_lost_after_s=30.0)
    victim = cluster.members()[1]
    cluster.kill(victim)
    cluster.run_for(20.0)
    assert state_of(cluster, victim) is WorkerState.LOST
    cluster.run_for(20.0)
    assert victim not in cluster.state.workers
    assert victim not in cluster.state.telemetry


def test_ids_that_never_come_back_do_not_fill_the_memory() -> None:
    cluster = SimulatedCluster(configuration(spares=0))
    for number in range(300):
        cluster.now_s += 0.01
        cluster.send(events.Registered(worker(f"x{number}", registered_at_s=cluster.now_s, heard=False)))
    cluster.run_for(5.0)
    assert len(cluster.state.workers) == 256
    assert "x299" in cluster.state.workers


def test_a_report_of_a_peers_end_is_believed_before_its_sockets_close() -> None:
    cluster = serving()
    leader, follower = cluster.members()
    epoch = cluster.state.groups[0].epoch
    cluster.kill(follower, seen_after_s=0.8)  # a large process: its memory is freed before its sockets
    fault = FaultReport(kind="process", message="rank 1 has ended", epoch=epoch, peer_rank=1)
    cluster.processes[leader].fault = fault
    cluster._report(cluster.processes[leader])
    assert state_of(cluster, follower) is WorkerState.LOST
    assert recovery_of(cluster).cause is Cause.PROCESS
    assert cluster.run_until(lambda: cluster.all_serve, 0.7)


def test_a_leader_whose_stream_cannot_be_opened_is_replaced() -> None:
    cluster = serving()
    epoch, leader = cluster.state.groups[0].epoch, cluster.members()[0]
    for _ in range(5):
        cluster.send(events.ExecuteBroken("g0", epoch, "UNAVAILABLE"))
        cluster.run_for(0.1)
    assert recovery_of(cluster).cause is Cause.STREAM
    assert cluster.run_until(lambda: cluster.all_serve, 3.0)
    assert leader not in cluster.members()


def forms_again(cluster: SimulatedCluster, epoch: int) -> bool:
    return cluster.run_until(lambda: cluster.ready["g0"] > epoch, 5.0)


def test_death_after_death_is_never_waited_for_though_the_survivors_report_comes_first() -> None:
    """Each time the peers' failed collective is heard of before the process is known to be gone."""
    cluster = serving(tensor_parallel_size=2, spares=1)
    for _ in range(6):
        victim = cluster.members()[0]
        epoch = cluster.ready["g0"]
        cluster.kill(victim, seen_after_s=0.1)
        killed_at_s = cluster.now_s
        assert forms_again(cluster, epoch)
        assert cluster.now_s - killed_at_s < 1.0
        cluster.start(victim)
        cluster.run_for(2.0)  # the replacement holds its shards; far less than it takes to count as stable


def test_a_spare_that_gets_the_rank_which_it_loads_beside_another_holds_just_that_one() -> None:
    cluster = serving(tensor_parallel_size=2, spares=1)
    first = cluster.members()[0]
    cluster.kill(first, seen_after_s=0.01)
    assert forms_again(cluster, cluster.ready["g0"])
    cluster.start(first)  # the new spare: it loads one shard, then the other beside it
    assert cluster.run_until(lambda: cluster.record(first).loading_beside, 5.0)
    loading = cluster.record(first).loading
    assert loading is not None
    cluster.kill(cluster.members()[loading.rank], seen_after_s=0.001)
    assert forms_again(cluster, cluster.ready["g0"])
    taken = cluster.record(first)
    assert (taken.rank, taken.shard and taken.shard.key, taken.others) == (loading.rank, loading, ())
