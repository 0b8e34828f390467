"""The comparison with other engines measures the same for all, and says what it found."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from benchmarks.peers import environment
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.comparison import Comparison, compare, machine_line, table
from benchmarks.peers.environment import PeerError
from benchmarks.peers.measure import Figures, Plan, decode_rate, measure

from ryzanstein.measuring import machine

ROOT = Path(__file__).parents[3]


class Clockwork:
    """An engine whose every step takes a second, for all streams together."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        self.prompts += prompts
        return [[float(step) for step in range(output_tokens + 1)] for _ in prompts]


def test_every_engine_is_asked_the_same_and_no_prompt_comes_twice() -> None:
    plan = Plan(vocab_size=1000, output_tokens=4)
    one, other = Clockwork(), Clockwork()
    assert measure(one, plan, 2.0) == measure(other, plan, 2.0)
    assert one.prompts == other.prompts
    assert len({tuple(prompt) for prompt in one.prompts}) == len(one.prompts)


def test_rates_count_the_tokens_of_all_streams() -> None:
    figures = measure(Clockwork(), Plan(vocab_size=1000, output_tokens=4, streams=(1, 8)), 2.0)
    assert figures == Figures(start_s=2.0, first_token_s=1.0, decode={1: 1.0, 8: 8.0})


def test_a_rate_counts_only_while_all_decode() -> None:
    early, late = [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0]
    assert decode_rate([early, late]) == 2.0  # one second, one token of each


def test_streams_that_never_met_have_no_rate() -> None:
    with pytest.raises(ValueError, match="never decoded all at once"):
        decode_rate([[0.0, 1.0], [2.0, 3.0]])


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Real probes, of little memory, around engines that take no time."""
    ours = iter([Figures(4.0, 0.5, {1: 20.0}), Figures(2.0, 0.3, {1: 40.0})])
    theirs = iter([Figures(2.0, 1.0, {1: 10.0}), Figures(2.0, 0.9, {1: 10.0})])
    peer = PEERS["openvino"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "read_bandwidth", partial(machine.read_bandwidth, size_bytes=1 << 20))
        return compare(
            peer, "1.0", peer.variants[0], lambda: next(ours), lambda: next(theirs), our_ranks=1, rounds=2
        )


def test_they_take_turns_between_probes_of_the_machine(comparison: Comparison) -> None:
    assert [figures.start_s for figures in comparison.ours] == [4.0, 2.0]
    assert len(comparison.machine) == 4
    assert "other programs used" in machine_line(comparison)


def test_a_ratio_above_one_is_in_our_favour_in_every_column(comparison: Comparison) -> None:
    assert comparison.ratios() == Figures(0.75, 2.5, {1: 3.0})
    assert "| times as good | 0.75 | 2.50 | 3.00 |" in table(comparison)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_every_peer_is_pinned_and_has_a_runner(name: str) -> None:
    lines = [line for line in PEERS[name].requirements.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.match(r"[\w-]+==[\w.]+( |$)", line) for line in lines), lines
    assert any(line.startswith(f"{PEERS[name].distribution}==") for line in lines)
    assert (ROOT / "benchmarks" / "peers" / "runners" / f"{name}.py").is_file()


def test_an_environment_without_the_peer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="give --install, or --env"):
        environment.ensure(PEERS["vllm"], tmp_path / "none", install=False)


def test_a_runner_starts_without_anything_of_ours() -> None:
    """With an interpreter that sees neither our packages nor theirs: only the engine needs more."""
    runners = ", ".join(f"benchmarks.peers.runners.{name}" for name in ("openvino", "transformers", "vllm"))
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {runners}",
    ]
    subprocess.run(command, check=True, timeout=60)
