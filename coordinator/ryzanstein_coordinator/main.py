"""The coordinator's subcommands: `coordinator`, `serve`, `plan`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ryzanstein.logs import configure_logging
from ryzanstein.model_plan import INT8, UNQUANTIZED
from ryzanstein.program import ConfigFile
from ryzanstein.service_manager import ServiceManager
from ryzanstein.sizes import parse_bytes

from .config import OrchestratorConfig
from .flags import command


def commands(app: typer.Typer) -> None:
    """Adds this package's subcommands to the one script."""
    app.command("serve")(command(serve))
    app.command("coordinator")(command(coordinator))
    app.command("plan")(plan)


def coordinator(config: OrchestratorConfig) -> None:
    """Run the coordinator alone; shard workers register with it from anywhere."""
    manager = ServiceManager.from_environment(os.environ)
    manager.status("starting")
    from .server import run_coordinator

    configure_logging(config.log_format, config.log_level, service="coordinator")
    asyncio.run(run_coordinator(config, manager))


def serve(config: OrchestratorConfig) -> None:
    """Serve a model on this machine: a coordinator and its shard workers under one parent."""
    from .serve import run_serve

    ServiceManager.from_environment(os.environ)  # its children must not speak in its name
    configure_logging(config.log_format, config.log_level, service="serve")
    code = asyncio.run(run_serve(config, sys.argv[1:]))
    if code:
        raise typer.Exit(code)


def plan(
    model_dir: Annotated[Path, typer.Argument(help="Hugging Face directory: config.json and safetensors")],
    tensor_parallel_size: Annotated[int, typer.Option(help="ranks that the model is split over")] = 1,
    gpu_memory: Annotated[
        int, typer.Option(parser=parse_bytes, metavar="BYTES", help="of each device, e.g. 80GiB")
    ] = 80 * 2**30,
    max_model_len: Annotated[int | None, typer.Option(help="tokens of prompt and output together")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="sequences that run at once")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    quantization: Annotated[
        str,
        typer.Option(help="none, fp8, or int8, which is for CPUs: --gpu-memory is then a worker's memory"),
    ] = UNQUANTIZED,
    memory_utilization: Annotated[float, typer.Option(help="share of the memory to use, in (0, 1]")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="the ledger as JSON")] = False,
    config: ConfigFile = None,
) -> None:
    """Plan every byte of each rank, without any GPU: does it fit, and how many tokens of cache are left."""
    from .plan import plan_for_devices, plan_json, render_plan

    settings = OrchestratorConfig(
        model_dir=model_dir,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        dtype=dtype,
        quantization=quantization,
        memory_utilization=memory_utilization,
    )
    kind = "cpu" if quantization == INT8 else "cuda"
    ledger = plan_for_devices(settings, device_bytes=gpu_memory, kind=kind)
    text = json.dumps(plan_json(ledger), indent=2) if as_json else render_plan(ledger)
    sys.stdout.write(text.rstrip("\n") + "\n")
    if not ledger.fits:
        raise typer.Exit(1)
