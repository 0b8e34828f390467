"""Runs one schedule from its beginning to its end, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .checks import ViolationError
from .faults import Faults
from .plan import FAULTS_WITHIN_S, HEALED_AFTER_S, Plan, plan_of
from .quiet_logs import errors_only
from .world import World

#: After the faults: nothing needs longer to end than this.
END_WITHIN_S = 40.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule showed."""

    seed: int
    violations: tuple[str, ...]
    trace: tuple[str, ...]
    #: Request → how it ended, with how many tokens, when.
    endings: dict[str, tuple[str, int, float]]
    simulated_s: float

    def check(self) -> None:
        """Raises ViolationError with all that a person needs to look into it."""
        if self.violations:
            lines = [*self.trace, f"seed {self.seed}:", *self.violations]
            raise ViolationError("\n".join(lines))


def advance(world: World, until_s: float, done: Callable[[], bool] = lambda: False) -> bool:
    """Lets time pass until a moment (on the world's clock), a violation, or until it is `done`."""
    timeline, violations = world.timeline, world.checks.violations
    while not violations and not done():
        next_at_s = timeline.next_at()
        if next_at_s is None or next_at_s > until_s:
            timeline.now_s = max(timeline.now_s, until_s)
            return done()
        timeline.step()
    return done()


def settled(world: World) -> bool:
    """Every client has ended, every group serves, and nobody is hurt."""
    coordinator = world.coordinator
    return (
        not world.unfinished
        and coordinator is not None
        and coordinator.all_serve
        and coordinator.runs
        and all(
            worker.membership.registered and worker.computes and not worker.cut
            for worker in world.workers.values()
        )
        and coordinator.readiness()[0]
    )


def finish(world: World) -> None:
    """Heals everything, waits for the end, and checks it."""
    for _ in range(
        4
    ):  # a drained process ends only when another has taken its place, and is started again then
        Faults(world).heal()
        advance(world, world.now_s + END_WITHIN_S / 4, lambda: settled(world))
        advance(world, world.now_s + 0.3)  # cancelled sequences leave
        if world.checks.violations or (settled(world) and not any(run.busy for run in world.runs)):
            break
    if not world.checks.violations:
        world.checks.at_the_end()


def run_plan(
    plan: Plan,
    extra: Sequence[tuple[float, Callable[[World], None]]] = (),
    *,
    traced: bool = False,
    every_tick: bool = False,
) -> Outcome:
    """One schedule. `extra`: what a named schedule does besides, at moments of its own."""
    world = World(plan, traced=traced, every_tick=every_tick)
    with errors_only(world.checks.fail):
        try:
            _run(world, extra)
        finally:
            outcome = outcome_of(world)
    return outcome


def _run(world: World, extra: Sequence[tuple[float, Callable[[World], None]]]) -> None:
    plan, faults, start_s = world.plan, Faults(world), world.now_s
    world.begin()
    for fault in plan.faults:
        world.timeline.after(fault.at_s, lambda fault=fault: faults.inflict(fault))  # type: ignore[misc]
    for at_s, act in extra:
        world.timeline.after(at_s, lambda act=act: act(world))  # type: ignore[misc]
    last_s = max([FAULTS_WITHIN_S, *(fault.at_s for fault in plan.faults)])
    quiet_s = (
        start_s + max([0.0, *(fault.at_s for fault in plan.faults), *(ask.at_s for ask in plan.asks)]) + 0.1
    )
    healed_s = start_s + max(HEALED_AFTER_S, last_s)
    patient = not extra  # what a named schedule waits for may still come
    advance(world, healed_s, lambda: patient and world.timeline.now_s > quiet_s and settled(world))
    if not world.checks.violations:
        finish(world)


def outcome_of(world: World) -> Outcome:
    """As it stands, and the end of the world: nothing of it stays behind in the interpreter."""
    endings = {
        name: (client.outcome, len(client.tokens), round(client.ended_s, 6))
        for name, client in world.clients.items()
    }
    outcome = Outcome(
        world.plan.seed, tuple(world.checks.violations), tuple(world.trace), endings, world.now_s - 100.0
    )
    if world.coordinator is not None:
        world.coordinator.die()
    return outcome


def run_seed(seed: int, *, every_tick: bool = False) -> Outcome:
    """The schedule of a seed; one that fails is run again with a trace."""
    plan = plan_of(seed)
    outcome = run_plan(plan, every_tick=every_tick)
    return run_plan(plan, traced=True, every_tick=every_tick) if outcome.violations else outcome


__all__ = ["Outcome", "advance", "finish", "outcome_of", "run_plan", "run_seed", "settled"]
