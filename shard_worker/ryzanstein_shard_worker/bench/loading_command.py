"""`ryzanstein bench loading`: how fast weights come from files into the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ryzanstein.measuring.group import bench_commands
from ryzanstein.measuring.outputs import Bench, JsonFile, PlotFile, View, progress_bars
from ryzanstein.model_plan import UNQUANTIZED
from ryzanstein.program import ConfigFile

from .devices import choose_device

_ROTARY_TABLE = 4096


def register_loading_benchmark(app: typer.Typer) -> None:
    """Adds `bench loading` to the one script."""
    bench_commands(app).command("loading")(loading)


def loading(
    model_dir: Annotated[
        Path, typer.Argument(help="Directory of the checkpoint, also one that is split for ranks.")
    ],
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            "--tensor-parallel-size", metavar="N", min=1, help="Ranks, which load at the same time."
        ),
    ] = 1,
    loads: Annotated[
        int, typer.Option("--loads", metavar="N", min=1, help="Each with cold files and with warm ones.")
    ] = 3,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda (rank R on GPU R).")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (the checkpoint's), float32, bfloat16 or float16.")
    ] = "auto",
    quantization: Annotated[
        str, typer.Option("--quantization", help="none, int8 on CPUs, or fp8 on GPUs.")
    ] = UNQUANTIZED,
    cpu_threads: Annotated[
        int, typer.Option("--cpu-threads", metavar="T", min=1, help="Of each rank, on CPUs.")
    ] = 1,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    config: ConfigFile = None,
) -> None:
    """Load a checkpoint as the workers of a group do it: seconds by phase, and bytes per second of every rank.

    "Cold" asks the kernel to forget the files first; how much of them was in memory all the same is shown.
    """
    from ryzanstein.model_plan import open_checkpoint

    from . import loading_view
    from .loading import Work, dtype_of, measure
    from .rank_processes import RankProcesses

    device = choose_device(device, tensor_parallel_size)
    work = Work(model_dir, device, dtype_of(model_dir, dtype), quantization, _ROTARY_TABLE)
    index = open_checkpoint(model_dir)
    settings = {
        "model": str(model_dir),
        "tensor_parallel_size": tensor_parallel_size,
        "split_for": index.tensor_parallel_size,
        "device": device,
        "dtype": work.dtype,
        "quantization": quantization,
        "cpu_threads": cpu_threads,
        "loads": loads,
    }
    view = View(loading_view.tables, loading_view.draw)
    cores = tensor_parallel_size * cpu_threads
    with (
        Bench("loading", settings, view, json_file=json_file, plot_file=plot_file, cores=cores) as bench,
        RankProcesses(tensor_parallel_size, threads=cpu_threads, pinned=cpu_threads == 1) as ranks,
        progress_bars() as bars,
    ):
        task = bars.add_task("loads", total=2 * loads, note="")
        for results in measure(ranks, work, loads=loads):
            for result in results:
                bench.add(result)
            slowest_s = max(result.seconds for result in results)
            bars.update(task, advance=1, note=f"{results[0].start}: {slowest_s:.2f} s")
