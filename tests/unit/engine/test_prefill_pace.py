"""The pace of prefill follows what steps take on this machine, whatever that is, and however unevenly it runs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ryzanstein_shard_worker.prefill_pace import PrefillPace

#: (streams, prefilled tokens) → seconds.
Machine = Callable[[int, int], float]


def weights_bound(streams: int, prefilled: int) -> float:
    """Reading the weights takes as long as computing 40 rows."""
    return 0.05 * max(1.0, (streams + prefilled) / 40)


def every_row_costs(streams: int, prefilled: int) -> float:
    return 0.03 + 0.001 * (streams + prefilled)


def steep(streams: int, prefilled: int) -> float:
    """The second half of a batch costs much more than the first."""
    return 0.01 + 1e-6 * (streams + prefilled) ** 2


def serve(
    pace: PrefillPace, machine: Machine, *, streams: int = 8, steps: int = 200
) -> list[tuple[int, float]]:
    """Prompts without end beside these streams: (prefilled, seconds) of each step."""
    seen = []
    for _ in range(steps):
        prefilled = pace.tokens(streams)
        seconds = machine(streams, prefilled)
        pace.stepped(streams, prefilled, seconds)
        seen.append((prefilled, seconds))
    return seen


@pytest.mark.parametrize("machine", [weights_bound, every_row_costs, steep])
@pytest.mark.parametrize("streams", [1, 8, 64])
def test_a_step_gets_as_long_as_allowed_and_hardly_longer(machine: Machine, streams: int) -> None:
    pace = PrefillPace(1.7, 512)
    steps = serve(pace, machine, streams=streams)
    alone = machine(streams, 0)
    assert max(seconds for _, seconds in steps) < 2 * 1.7 * alone, "also while it learns"
    later = [prefilled for prefilled, _ in steps[100:] if prefilled]
    # 16 tokens go whatever they cost: one row may cost more than all the rest allows.
    assert all(machine(streams, n) < 2.0 * alone or n <= 31 for n in later)
    tried = next(n for n in range(512, 0, -1) if machine(streams, n) <= 1.7 * alone or n == 16)
    assert max(later) >= tried // 2 - 8, "half of what would go at least: rows come in few sizes"


def test_now_and_then_a_step_without_prefill_shows_what_that_takes() -> None:
    steps = serve(PrefillPace(1.7, 512), weights_bound)
    without = [index for index, (prefilled, _) in enumerate(steps) if not prefilled]
    assert 8 <= len(without) <= 20


def test_a_machine_that_is_disturbed_for_seconds_at_a_time_changes_little() -> None:
    draw = random.Random(2)
    speed, left = 1.0, 0

    def disturbed(streams: int, prefilled: int) -> float:
        nonlocal speed, left
        if left == 0:
            speed, left = draw.choice([1.0, 1.0, 2.0, 4.0]), draw.randint(5, 60)
        left -= 1
        return weights_bound(streams, prefilled) * speed * draw.uniform(0.95, 1.1)

    steps = serve(PrefillPace(1.7, 512), disturbed, steps=600)
    assert {prefilled for prefilled, _ in steps[100:]} <= {0, 40, 56}, "48 or 64 rows"


def test_other_numbers_of_streams_begin_with_what_is_known_of_the_nearest() -> None:
    pace = PrefillPace(1.7, 512)
    serve(pace, weights_bound, streams=8)
    assert pace.tokens(15) == 64 - 15 or pace.tokens(15) == 48 - 15
    assert pace.tokens(20) + 20 in (48, 64)


def test_rows_come_in_sizes_that_need_no_padding() -> None:
    for streams in (1, 7, 16, 33, 600):
        seen = {streams + n for n, _ in serve(PrefillPace(1.5, 512), every_row_costs, streams=streams) if n}
        assert all(rows in (24, 32, 48, 64, 96, 128, 192, 1024) for rows in seen), seen


def test_while_nobody_decodes_nothing_is_held_up() -> None:
    pace = PrefillPace(1.7, 512)
    assert pace.tokens(0) == 512
    pace.stepped(0, 512, 3.0)
    assert 0 < pace.tokens(1) < 32


def test_a_large_gpu_prefills_a_large_piece_at_least() -> None:
    pace = PrefillPace(1.7, 8192)
    steps = serve(pace, lambda streams, prefilled: 0.004 if not prefilled else 0.012)  # a graph against none
    assert min(prefilled for prefilled, _ in steps if prefilled) >= 256
