"""The same world driven by hypothesis, which makes a failing schedule as short as it can."""

from __future__ import annotations

import contextlib

from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .faults import Faults
from .plan import KINDS, Ask, Fault, Plan
from .quiet_logs import errors_only
from .schedule import advance, finish, outcome_of
from .setting import Shape
from .world import World

FRACTIONS = strategies.floats(0.0, 1.0, width=16)


class AnySchedule(RuleBasedStateMachine):
    """A cluster to which anything may happen at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = contextlib.ExitStack()
        self._world: World | None = None
        self._asked = 0

    @property
    def world(self) -> World:
        assert self._world is not None
        return self._world

    @initialize(
        ranks=strategies.sampled_from([1, 2, 4]),
        groups=strategies.sampled_from([1, 2]),
        spares=strategies.integers(0, 2),
        blocks=strategies.sampled_from([4, 8]),
    )
    def begin(self, ranks: int, groups: int, spares: int, blocks: int) -> None:
        shape = Shape(ranks=ranks, groups=groups, spares=spares, blocks=blocks)
        self._world = World(Plan(seed=0, shape=shape, asks=(), faults=()), traced=True)
        self._closing.enter_context(errors_only(self.world.checks.fail))
        self.world.begin()

    @rule(seconds=strategies.sampled_from([0.001, 0.01, 0.05, 0.3, 1.2]))
    def wait(self, seconds: float) -> None:
        advance(self.world, self.world.now_s + seconds)

    @rule(
        prompt=strategies.lists(strategies.integers(0, 900), min_size=1, max_size=20),
        most=strategies.integers(1, 20),
    )
    def ask(self, prompt: list[int], most: int) -> None:
        if self._asked < 2 * self.world.setting.shape.sequences:
            ask = Ask(0.0, f"r{self._asked}", tuple(prompt), seed=self._asked, max_tokens=most)
            self._asked += 1
            self.world.unfinished += 1
            self.world.start_client(ask)

    @rule(kind=strategies.sampled_from(sorted(KINDS)), whom=strategies.integers(0, 7), amount=FRACTIONS)
    def break_something(self, kind: str, whom: int, amount: float) -> None:
        Faults(self.world).inflict(Fault(0.0, kind, whom, amount))

    @invariant()
    def nothing_impossible_has_happened(self) -> None:
        if self._world is not None:
            assert not self.world.checks.violations, "\n".join(self.world.trace)

    def teardown(self) -> None:
        if self._world is not None:
            try:
                if not self.world.checks.violations:
                    finish(self.world)
            finally:
                outcome = outcome_of(self.world)
                self._closing.close()
            outcome.check()


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
