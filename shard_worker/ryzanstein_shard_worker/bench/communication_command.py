"""`ryzanstein bench communication`: how fast ranks on this machine talk to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.measuring.group import bench_commands
from ryzanstein.measuring.outputs import Bench, JsonFile, PlotFile, View, progress_bars
from ryzanstein.program import EXIT_USAGE, ConfigFile, ProgramError
from ryzanstein.sizes import parse_bytes

from .devices import choose_device

if TYPE_CHECKING:
    from ..communication.benchmark import CollectiveResult


def register_communication_benchmark(app: typer.Typer) -> None:
    """Adds `bench communication` to the one script."""
    bench_commands(app).command("communication")(communication)


def communication(
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=1, help="Processes to measure between.")
    ] = 2,
    backends: Annotated[
        str,
        typer.Option(
            "--backends",
            metavar="NAME,…",
            help="Of shared_memory, gloo, nccl; default: all that this machine has.",
        ),
    ] = "",
    operations: Annotated[
        str,
        typer.Option(
            "--operations",
            metavar="NAME,…",
            help="Of all_reduce, all_gather, reduce_scatter, broadcast, send_receive, barrier; default: all.",
        ),
    ] = "",
    device: Annotated[
        str, typer.Option("--device", help="Where the tensors are: auto, cpu or cuda (rank R on GPU R).")
    ] = "auto",
    min_size: Annotated[
        int, typer.Option("--min-size", parser=parse_bytes, metavar="BYTES", help="The smallest, e.g. 1KiB.")
    ] = 1 << 10,
    max_size: Annotated[
        int, typer.Option("--max-size", parser=parse_bytes, metavar="BYTES", help="The largest, e.g. 64MiB.")
    ] = 64 << 20,
    size_factor: Annotated[
        int, typer.Option("--size-factor", metavar="F", min=2, help="From one size to the next.")
    ] = 4,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", min=0.001, help="For each operation and size.")
    ] = 0.2,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    config: ConfigFile = None,
) -> None:
    """Measure every collective between processes of this machine: latency, and bandwidth as nccl-tests define it.

    Each process has a processor of its own, if there are enough.
    """
    from ryzanstein.measuring.flags import choices

    from ..communication.benchmark import BACKENDS, OPERATIONS, sizes, why_not
    from . import communication_view

    device = choose_device(device, ranks)
    named = choices("--backends", backends, BACKENDS)
    refusals = {name: why for name in named if (why := why_not(name, ranks, device))}
    if backends and refusals:
        name, why = next(iter(refusals.items()))
        raise ProgramError(f"--backends: {name} can't be measured here: {why}", exit_code=EXIT_USAGE)
    usable = [name for name in named if name not in refusals]
    if not usable:
        told = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        raise ProgramError(f"no backend can be measured here: {told}", exit_code=EXIT_USAGE)
    wanted = choices("--operations", operations, OPERATIONS)
    steps = list(sizes(min_size, max_size, size_factor))
    if min_size < 1 or not steps:
        raise ProgramError("--min-size must be 1 or more and at most --max-size", exit_code=EXIT_USAGE)
    settings = {
        "ranks": ranks,
        "device": device,
        "backends": usable,
        "left_out": refusals,
        "operations": wanted,
        "sizes_bytes": steps,
        "seconds_each": seconds,
    }
    view = View(communication_view.tables, communication_view.draw)
    with Bench(
        "communication", settings, view, json_file=json_file, plot_file=plot_file, cores=ranks
    ) as bench:
        _measure(bench, ranks, usable, wanted, steps, device, seconds)
    for name, why in refusals.items():
        typer.echo(f"left out: {name}: {why}")


def _measure(
    bench: Bench[CollectiveResult],
    ranks: int,
    backends: list[str],
    operations: list[str],
    steps: list[int],
    device: str,
    budget_s: float,
) -> None:
    from ..communication.benchmark import NCCLCommunicationBenchmark
    from .communication_view import size_text
    from .rank_processes import RankProcesses

    with RankProcesses(ranks, pinned=True) as processes, progress_bars() as bars:
        for backend in backends:
            task = bars.add_task(backend, total=None, note="forming a group")
            collectives = NCCLCommunicationBenchmark(processes, backend, device=device, budget_s=budget_s)
            work = [
                (operation, size)
                for operation in collectives.operations()
                if operation in operations
                for size in (steps if operation != "barrier" else [0])
            ]
            bars.update(task, total=len(work))
            for operation, size in work:
                bars.update(task, note=f"{operation} {size_text(size) if size else ''}")
                bench.add(collectives.measure(operation, size))
                bars.advance(task)
            bars.update(task, note="")
            collectives.close()
