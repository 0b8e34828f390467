from __future__ import annotations

from ryzanstein_shard_worker.pulse import SILENCE_S, Pulse
from ryzanstein_shard_worker.step_loop import Progress

WATCHDOG_S = 10.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_an_engine_that_waits_for_a_command_gets_on_for_ever() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    clock.passes(1e6)
    assert pulse.gets_on(WATCHDOG_S, None)
    pulse.run(lambda: clock.passes(1e6))
    assert pulse.gets_on(WATCHDOG_S, None), "it waits again"


def test_a_command_that_shows_nothing_is_stuck_after_a_while() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    seen = []

    def command() -> None:
        for pause_s in (SILENCE_S, WATCHDOG_S, 0.1):
            clock.passes(pause_s)
            seen.append(pulse.gets_on(WATCHDOG_S, None))

    pulse.run(command)
    assert seen == [True, True, False]


def test_loading_gets_on_with_every_piece() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    fractions: list[float] = []
    felt = pulse.felt_in(fractions.append)

    def load() -> None:
        for fraction in (0.1, 0.2, 0.3):
            clock.passes(SILENCE_S)
            felt(fraction)
            assert pulse.gets_on(WATCHDOG_S, None)
        clock.passes(SILENCE_S + WATCHDOG_S + 0.1)
        assert not pulse.gets_on(WATCHDOG_S, None)

    pulse.run(load)
    assert fractions == [0.1, 0.2, 0.3]


def test_in_a_group_a_step_may_take_as_long_as_a_rank_is_waited_for() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    progress = Progress(last_step_at=clock(), patience_s=30.0)

    def step() -> None:
        clock.passes(30.0 + WATCHDOG_S)
        assert pulse.gets_on(WATCHDOG_S, progress)
        clock.passes(0.1)
        assert not pulse.gets_on(WATCHDOG_S, progress)
        progress.finished(1, clock(), clock())
        assert pulse.gets_on(WATCHDOG_S, progress)

    pulse.run(step)
