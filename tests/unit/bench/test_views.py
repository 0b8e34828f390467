"""Tables and plots of results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ryzanstein.measuring.machine import Load, Machine, MachineState
from ryzanstein.measuring.outputs import View
from ryzanstein.measuring.statistics import spread
from ryzanstein_client.bench import scaling, serving_view
from ryzanstein_client.bench.arrivals import Concurrency, Limits, Rate
from ryzanstein_client.bench.drive import Exchange, Outcome
from ryzanstein_client.bench.scaling import ScalingResult, compared
from ryzanstein_client.bench.summary import Objectives, ServingResult, summarise
from ryzanstein_shard_worker.bench import communication_view, loading_view
from ryzanstein_shard_worker.bench.loading import LoadingResult
from ryzanstein_shard_worker.communication.benchmark import CollectiveResult

MACHINE = MachineState(
    Machine("a processor", 2, 2, 8 << 30, (), "Linux", "3.11", None, "0.1.0", None),
    Load(1.0, 0.5, 0.25), 2, 40e9, 41e9,
)  # fmt: skip


def clusters() -> list[ScalingResult]:
    one = compared(1, 2.0, 0.8, {"prefill": 500.0, "b1": 30.0, "b8": 150.0}, MACHINE, None)
    two = compared(2, 2.5, 0.4, {"prefill": 1000.0, "b1": 45.0, "b8": 300.0}, MACHINE, one)
    return [one, two]


def loads() -> list[ServingResult]:
    done, failed = (
        Exchange(0.0, Outcome.DONE, prompt_tokens=9),
        Exchange(0.5, Outcome.FAILED, "INTERNAL: a defect"),
    )
    done.arrivals, done.ended_s = [(0.2, 1), (0.3, 2), (0.5, 1)], 0.5
    limits, objectives = Limits(2, None), Objectives(first_token_s=0.3)
    return [summarise([done, failed], load, limits, objectives, 1.0) for load in (Concurrency(2), Rate(1.5))]


def collectives() -> list[CollectiveResult]:
    times = spread([1e-5, 2e-5, 4e-5])
    assert times is not None
    found = [
        CollectiveResult(backend, operation, 2, size, times, size / 2e-5, size / 4e-5)
        for backend in ("shared_memory", "gloo")
        for operation in ("all_reduce", "broadcast")
        for size in (1 << 10, 1 << 20)
    ]
    return [*found, CollectiveResult("gloo", "barrier", 2, 0, times, None, None)]


def shards() -> list[LoadingResult]:
    phases = {"open": 0.1, "modules": 0.2, "weights": 0.5}
    return [
        LoadingResult(start, 0, rank, 2, cached, phases, 0.8, 10**9, 10**9, 2e9)
        for start, cached in (("cold", 0.0), ("warm", None))
        for rank in (0, 1)
    ]


def text(view: View[Any], results: Sequence[Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    for table in view.tables(results):
        console.print(table)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


VIEWS: list[Any] = [
    pytest.param(View(scaling.tables, scaling.draw), clusters(), ["1000.0", "2.00, 100%", "1.50, 75%"], id="scaling"),
    pytest.param(View(serving_view.tables, serving_view.draw), loads(),
        ["2 at once", "1.5/s", "200.0", "1.00/s, 50%", "INTERNAL: a defect"], id="serving"),
    pytest.param(View(communication_view.tables, communication_view.draw), collectives(),
        ["1 MiB", "20.0", "52.43", "26.21"], id="communication"),
    pytest.param(View(loading_view.tables, loading_view.draw), shards(),
        ["0.800", "2.00", "0%", "unknown"], id="loading"),
]  # fmt: skip


@pytest.mark.parametrize(("view", "results", "shown"), VIEWS)
def test_tables_say_what_was_measured(view: View[Any], results: Sequence[Any], shown: list[str]) -> None:
    found = text(view, results)
    assert [figure for figure in shown if figure not in found] == []


@pytest.mark.parametrize(("view", "results", "shown"), VIEWS)
def test_plots_can_be_drawn(
    view: View[Any], results: Sequence[Any], shown: list[str], tmp_path: Path
) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(4, 3), layout="constrained")
    view.draw(figure, results)
    figure.savefig(tmp_path / "plot.svg")
    assert "</svg>" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_a_barrier_alone_can_be_drawn(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    communication_view.draw(figure, collectives()[-1:])
    assert figure.axes[0].get_title() == "barrier"


def test_efficiency_is_held_against_the_first_cluster() -> None:
    one, two = clusters()
    assert one.speed_up == {"prefill": 1.0, "b1": 1.0, "b8": 1.0}
    assert two.speed_up == {"prefill": 2.0, "b1": 1.5, "b8": 2.0}
    assert two.efficiency == {"prefill": 1.0, "b1": 0.75, "b8": 1.0}
    four = compared(4, 3.0, 0.2, two.tokens_per_s, MACHINE, two)
    assert four.efficiency["b8"] == 0.5
