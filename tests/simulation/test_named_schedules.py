"""The hard cases by name: what random schedules meet now and then, here at just that moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ryzanstein_coordinator.group_record import Phase

from . import defects
from .faults import Faults
from .plan import Ask, Fault, Plan
from .schedule import run_plan
from .setting import Shape
from .worker import Worker
from .world import World

Act = Callable[[World], None]

#: Long enough to be met by everything; together more than run at once.
ASKS = tuple(
    Ask(at_s=0.2 + 0.01 * i, request_id=f"r{i}", prompt=(7 * i + 1, 2, 3), seed=i, max_tokens=20)
    for i in range(5)
)


def plan(*faults: Fault, shape: Shape | None = None, restart_s: float = 0.3) -> Plan:
    """Five requests from 0.2 s on; the group serves by then."""
    return Plan(
        seed=1, shape=shape or Shape(spares=1), asks=ASKS, faults=faults, restart_s=restart_s, load_s=0.02
    )


def when(condition: Callable[[World], bool], act: Act) -> Act:
    """Acts once, as soon as the condition holds; looked at ten times per millisecond."""

    def look(world: World) -> None:
        if condition(world):
            act(world)
        elif world.now_s < 105.0:
            world.timeline.after(0.0001, lambda: look(world))

    return look


def leader(world: World) -> Worker:
    return next(run.leader for run in reversed(world.runs) if not run.broken)


def phase(world: World) -> Phase | None:
    return None if world.coordinator is None else world.coordinator.state.groups[0].phase


def inflict(kind: str, target: int = 0, amount: float = 0.5) -> Act:
    return lambda world: Faults(world).inflict(Fault(0.0, kind, target, amount))


def check(the_plan: Plan, *extra: tuple[float, Act]) -> None:
    run_plan(the_plan, extra, traced=True).check()


def test_the_leader_dies_between_sampling_and_sending() -> None:
    def instead_of_sending(world: World) -> None:
        worker = leader(world)
        setattr(worker, "publish", lambda _run, _response: world.end_worker(worker))  # noqa: B010

    check(plan(), (0.25, instead_of_sending))


@pytest.mark.parametrize("second", [Phase.FENCING, Phase.LOADING, Phase.FORMING, Phase.SERVING])
@pytest.mark.parametrize("spares", [0, 1, 2])
def test_another_dies_while_the_group_recovers(second: Phase, spares: int) -> None:
    def again(world: World) -> None:
        alive = [worker for worker in world.workers.values() if worker.alive]
        world.end_worker(alive[0])

    def first(world: World) -> None:
        world.end_worker(leader(world))
        when(lambda w: phase(w) is not Phase.SERVING, when(lambda w: phase(w) is second, again))(world)

    check(plan(shape=Shape(spares=spares)), (0.25, first))


@pytest.mark.parametrize("restart_s", [0.02, 0.4])
def test_coordinator_and_leader_die_together(restart_s: float) -> None:
    check(plan(Fault(0.3, "kill_coordinator_and_leader"), restart_s=restart_s))


@pytest.mark.parametrize("second", [Phase.FENCING, Phase.LOADING, Phase.FORMING])
def test_the_coordinator_dies_while_it_forms_a_group(second: Phase) -> None:
    def first(world: World) -> None:
        world.end_worker(leader(world))
        when(lambda w: phase(w) is second, lambda w: w.end_coordinator())(world)

    check(plan(), (0.25, first))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_stopped_leader_goes_on_when_others_serve(ranks: int) -> None:
    shape = Shape(ranks=ranks, spares=1)
    check(plan(Fault(0.25, "stop_leader", amount=0.9), shape=shape))


@pytest.mark.parametrize("back_s", [0.001, 0.01, 0.02, 0.04, 0.08, 0.2])
def test_a_client_comes_back_while_its_request_is_replayed(back_s: float) -> None:
    def leave(world: World) -> None:
        world.end_worker(leader(world))
        for client in world.clients.values():
            client.leave_for(back_s)

    check(plan(), (0.3, leave))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [0, 1])
def test_a_long_prompt_is_not_blamed_for_poison_beside_it(ranks: int, groups: int, tokens: int) -> None:
    """With 1, the poison has a token of each prefill: within that time the long prompt never has one."""
    shape = Shape(ranks=ranks, groups=groups, blocks=10, sequences=4, batched_tokens=4)
    long = Ask(at_s=0.21, request_id="long", prompt=tuple(range(2, 30)), seed=9, max_tokens=12)
    asks = (*ASKS[:3], long)
    the_plan = Plan(seed=1, shape=shape, asks=asks, faults=(), restart_s=0.05, load_s=0.005)
    outcome = run_plan(the_plan, [(0.1, lambda world: world.poison.update(r0=tokens))], traced=True)
    outcome.check()
    assert outcome.endings["r0"][0] == "InternalError"
    assert {outcome.endings[name][0] for name in ("r1", "r2", "long")} <= {"stop", "length"}


@pytest.mark.parametrize("spares", [0, 1])
def test_a_leader_that_takes_no_stream_any_more_is_replaced_though_no_attempt_fails(spares: int) -> None:
    """Without a spare by itself, when it hears again."""

    def go_deaf(world: World) -> None:
        worker = leader(world)
        world.checks.fault_begins(worker)
        worker.deaf = True
        assert worker.outputs is not None
        worker.outputs.lose_connection()
        world.timeline.after(2.5, lambda: setattr(worker, "deaf", False))

    check(plan(shape=Shape(spares=spares)), (0.3, go_deaf))


def test_a_cancel_races_with_the_end() -> None:
    ends_s = run_plan(plan()).endings["r0"][2] - 100.0
    for half_milliseconds in range(-20, 21):
        check(plan(), (ends_s + half_milliseconds / 2000, inflict("cancel", 0)))


def test_a_worker_that_comes_late_makes_the_group_whole() -> None:
    shape = Shape(ranks=4)
    late = Plan(seed=1, shape=shape, asks=ASKS, faults=(), late_workers=1, late_by_s=1.5)
    check(late)


@pytest.mark.parametrize("stands_still_s", [0.3, 0.45, 0.49])
def test_late_heartbeats_of_a_healthy_worker_and_a_coordinator_that_stands_still(
    stands_still_s: float,
) -> None:
    """Half a lease each: together they are no silence."""

    def late(world: World) -> None:
        for number in range(len(world.workers)):
            Faults(world).inflict(Fault(0.0, "late_beats", number, 1.0))

    def stand_still(world: World) -> None:
        Faults(world).stop_coordinator(stands_still_s)

    check(plan(shape=Shape()), (0.3, late), *((at_s, stand_still) for at_s in (0.83, 1.9, 2.5)))


def both_at_once(world: World) -> None:
    for worker in world.workers.values():
        world.end_worker(worker)


def test_all_workers_die_at_once() -> None:
    check(plan(), (0.3, both_at_once))


def stuck_when_the_coordinator_dies(world: World) -> None:
    """A rank that can't leave has been told the next epoch, but its heartbeats have not when the coordinator dies."""
    stuck, other = leader(world), world.runs[-1].members[1]
    Faults(world).stick(stuck, 1.5)
    world.end_worker(other)
    when(lambda _: stuck.named_epoch > stuck.membership.highest_epoch, lambda w: w.end_coordinator())(world)


def test_a_worker_says_which_epoch_it_was_told() -> None:
    check(plan(shape=Shape()), (0.3, stuck_when_the_coordinator_dies))


def test_without_that_it_is_fenced_in_vain_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    defects.forget_named_epochs(monkeypatch)
    assert run_plan(plan(shape=Shape()), [(0.3, stuck_when_the_coordinator_dies)]).violations


def takes_the_id_of_a_dead_one(world: World) -> None:
    """While one group's next epoch can't be written, its dead rank's id comes back and takes a rank of the other."""
    coordinator = world.coordinator
    assert coordinator is not None
    first, second = coordinator.state.groups
    Faults(world).stop(world.workers[first.members[1].worker_id], 3.0)
    dead = world.workers[second.members[0].worker_id]

    def then(world: World) -> None:
        world.disk.works = False
        world.end_worker(dead)
        when(serves_again, lambda w: setattr(w.disk, "works", True))(world)

    def serves_again(world: World) -> bool:
        group = coordinator.state.groups[0]
        return group.phase is Phase.SERVING and group.epoch > first.epoch

    when(lambda _: coordinator.state.groups[0].phase is Phase.VACANT, then)(world)


def test_a_process_is_not_fenced_for_a_dead_one_of_its_id() -> None:
    check(plan(shape=Shape(groups=2)), (0.5, takes_the_id_of_a_dead_one))


def test_by_name_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    defects.fence_by_name(monkeypatch)
    assert run_plan(plan(shape=Shape(groups=2)), [(0.5, takes_the_id_of_a_dead_one)]).violations
