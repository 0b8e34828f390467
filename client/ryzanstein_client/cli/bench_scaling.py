"""`ryzanstein bench scaling`: the same work on clusters of one rank, two, more, which it starts itself."""

from __future__ import annotations

import asyncio
import importlib.util
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.measuring.group import bench_commands
from ryzanstein.measuring.outputs import Bench, JsonFile, PlotFile, View, progress_bars
from ryzanstein.program import EXIT_USAGE, ConfigFile, ProgramError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryzanstein_client.bench.scaling import ScalingResult, ScalingWork

_READY_S = 600.0
#: One of each extra that the programs of a cluster need.
_NEEDED = ("uvicorn", "torch")


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    bench_commands(app).command("scaling")(scaling)


def scaling(
    model_dir: Annotated[
        Path | None, typer.Argument(help="Directory of a checkpoint; default: the bundled model.")
    ] = None,
    ranks: Annotated[
        str, typer.Option("--ranks", metavar="N,…", help="A cluster of each; held against the first.")
    ] = "1,2",
    streams: Annotated[
        str, typer.Option("--streams", metavar="N,…", help="That decode at once, one number after the other.")
    ] = "1,8,16",
    prefill_tokens: Annotated[
        int,
        typer.Option(
            "--prefill-tokens", metavar="N", min=1, help="Of the prompt whose first token is timed."
        ),
    ] = 512,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Of each stream that decodes.")
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", metavar="N", min=2, help="Of each stream that decodes.")
    ] = 128,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Of each figure, which is the median.")
    ] = 3,
    cpu_threads: Annotated[
        int, typer.Option("--cpu-threads", metavar="T", min=1, help="Of each rank, on CPUs.")
    ] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (the checkpoint's), float32, bfloat16 or float16.")
    ] = "auto",
    serve_flags: Annotated[
        str, typer.Option("--serve-flags", metavar="TEXT", help="More flags of `serve`, as one text.")
    ] = "",
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    config: ConfigFile = None,
) -> None:
    """Start a cluster of each number of ranks on this machine, give all the same work, and tell what ranks are worth.

    Phases: prefill (a long prompt to its first token), and decoding with so many streams at once (b1, b8, b16).
    """
    from ryzanstein.measuring.flags import number_list
    from ryzanstein_client.bench import scaling as bench_scaling
    from ryzanstein_client.bench.scaling import ScalingWork

    from .demo_cluster import bundled_model

    for module in _NEEDED:
        if importlib.util.find_spec(module) is None:
            error = ModuleNotFoundError(name=module)
            raise missing_extra(error) or error
    counts = number_list("--ranks", ranks, int)
    at_once = number_list("--streams", streams, int)
    if not counts or not at_once:
        raise ProgramError("--ranks and --streams need a number each at least", exit_code=EXIT_USAGE)
    model = model_dir or bundled_model()
    if not (model / "config.json").is_file():
        raise ProgramError(f"{model} is not a directory with a config.json", exit_code=EXIT_USAGE)
    work = ScalingWork(prefill_tokens, prompt_tokens, output_tokens, tuple(at_once), repeats)
    flags = ["--cpu-threads", str(cpu_threads), "--device", device, "--dtype", dtype]
    flags += ["--max-num-seqs", str(max(at_once)), *shlex.split(serve_flags)]
    settings = {
        "model": str(model),
        "ranks": counts,
        "streams": at_once,
        "prefill_tokens": prefill_tokens,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "repeats": repeats,
        "serve_flags": flags,
    }
    view = View(bench_scaling.tables, bench_scaling.draw)
    with (
        Bench("scaling", settings, view, json_file=json_file, plot_file=plot_file) as bench,
        progress_bars() as bars,
    ):
        for count in counts:
            task = bars.add_task(f"{count} ranks", total=3 + len(at_once), note="starting")
            first = bench.results[0] if bench.results else None
            cores = count * cpu_threads

            def show(note: str, task: object = task) -> None:
                bars.update(task, advance=1, note=note)  # type: ignore[arg-type]

            bench.add(_measure_cluster(model, count, flags, work, cores, first, show))
            bars.update(task, completed=3 + len(at_once), note="")


def _measure_cluster(
    model: Path,
    ranks: int,
    flags: list[str],
    work: ScalingWork,
    cores: int,
    first: ScalingResult | None,
    show: Callable[[str], None],
) -> ScalingResult:
    from ryzanstein.measuring.machine import MachineWatch
    from ryzanstein_client.bench.scaling import compared

    from .demo_cluster import DemoCluster, free_port

    with tempfile.TemporaryDirectory(prefix="ryzanstein-bench-") as state_dir:
        port = free_port()
        serve = [sys.executable, "-m", "ryzanstein_coordinator", "serve", str(model)]
        serve += ["--tensor-parallel-size", str(ranks), "--state-dir", state_dir, "--host", "127.0.0.1"]
        serve += ["--grpc-port", str(port), "--http-port", "0", *flags]
        begun_s = time.monotonic()
        with DemoCluster(serve, grpc_port=port) as cluster:
            ready = cluster.wait_ready(_READY_S, lambda: None)
            start_s = time.monotonic() - begun_s
            watch = MachineWatch(cores)
            first_token_s, rates = asyncio.run(_measure(ready.grpc, work, show))
            state = watch.state()
            cluster.stop()
    return compared(ranks, start_s, first_token_s, rates, state, first)


async def _measure(
    address: str, work: ScalingWork, show: Callable[[str], None]
) -> tuple[float, dict[str, float]]:
    from ryzanstein_client.aio import AsyncClient
    from ryzanstein_client.bench.fronts import GrpcFront
    from ryzanstein_client.bench.scaling import measure
    from ryzanstein_client.types import SamplingParams

    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    front = GrpcFront(AsyncClient(address), model=None, sampling=sampling, timeout_s=_READY_S)
    try:
        return await measure(front, work, show)
    except ValueError as error:
        raise ProgramError(f"{error}") from None
    finally:
        await front.aclose()
