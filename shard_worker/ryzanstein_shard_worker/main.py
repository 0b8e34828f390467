"""`ryzanstein shard-worker`: one process for one GPU, or for one share of the processors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein import failpoints
from ryzanstein.logs import LogContext, configure_logging
from ryzanstein.program import EXIT_FAILED, ConfigFile, LogFormat, LogLevel
from ryzanstein.service_manager import ServiceManager
from ryzanstein.tls import TlsFiles

from .bench.communication_command import register_communication_benchmark
from .bench.loading_command import register_loading_benchmark
from .checkpoint.command import register_shard_command

if TYPE_CHECKING:  # torch is imported by the commands, not by `ryzanstein --help`
    from .config import DistributedConfig
    from .security import WorkerSecurity
    from .service import ShardWorkerServicer


def commands(app: typer.Typer) -> None:
    """Adds this package's subcommands to the one script."""
    app.command("shard-worker")(shard_worker)
    register_shard_command(app)
    register_communication_benchmark(app)
    register_loading_benchmark(app)


def shard_worker(
    coordinator: Annotated[
        str, typer.Option(help="HOST:PORT of the coordinator; - reads it from standard input")
    ] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="cpu or cuda:N; auto takes cuda:0 if there is one")] = "auto",
    worker_id: Annotated[
        str, typer.Option(help="name in the cluster, the same over restarts; default HOST:DEVICE")
    ] = "",
    host: Annotated[
        str, typer.Option(help="address to listen on, reachable by the coordinator")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one")] = 0,
    model_dir: Annotated[
        Path | None, typer.Option(help="this machine's copy of the model; default: the coordinator's path")
    ] = None,
    cpu_threads: Annotated[
        int, typer.Option(help="threads of one step on a CPU; 0: one for each processor")
    ] = 0,
    cpu_pinning: Annotated[
        str,
        typer.Option(metavar="LIST", help="processors of the threads that compute, e.g. 0-15; none: any"),
    ] = "none",
    drain_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="most time that running streams get at the end")
    ] = 30.0,
    join_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what the coordinator and its workers know; one line")
    ] = None,
    tls_cert_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="this worker's certificate (PEM), shown to whoever it calls too"),
    ] = None,
    tls_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="its private key (PEM)")] = None,
    tls_client_ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the coordinator must show a certificate of these authorities"),
    ] = None,
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="encrypt, and check the coordinator's server against these authorities; default: the clients'",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="listen on an address that other machines reach, not or half protected")
    ] = False,
    log_format: LogFormat = "auto",
    log_level: LogLevel = "info",
    config: ConfigFile = None,
) -> None:
    """Serve one shard of the model: register with the coordinator and wait for its orders."""
    manager = ServiceManager.from_environment(os.environ)
    manager.status("starting")
    from .config import DistributedConfig, default_worker_id, read_pinning

    logs = configure_logging(log_format, log_level, service="shard-worker")
    device = _choose_device(device)
    worker_id = worker_id or default_worker_id(device)
    pinned_to = read_pinning(cpu_pinning) if device == "cpu" else ()
    logs.bind(worker=worker_id)
    failpoints.identify(worker_id)
    coordinator = _told_address() if coordinator == "-" else coordinator
    asyncio.run(
        run(
            DistributedConfig(
                coordinator=coordinator,
                device=device,
                worker_id=worker_id,
                host=host,
                port=port,
                model_dir=model_dir,
                cpu_threads=cpu_threads or len(pinned_to or os.sched_getaffinity(0)),
                pinned_to=pinned_to,
                drain_timeout_s=drain_timeout,
                join_token_file=join_token_file,
                tls=TlsFiles(
                    cert_file=tls_cert_file,
                    key_file=tls_key_file,
                    client_ca_file=tls_client_ca_file,
                    ca_file=tls_ca_file,
                ),
                insecure=insecure,
            ),
            manager,
            logs,
        )
    )


class WorkerError(Exception):
    """The worker can't go on; the message is one line for the operator."""

    exit_code = EXIT_FAILED


def _told_address() -> str:
    """The coordinator's, from a parent that may not know it yet: meanwhile torch is loaded, which takes a second."""
    from . import engine, membership, service  # noqa: F401 - they load it

    address = sys.stdin.readline().strip()
    if not address:
        raise WorkerError("--coordinator -: standard input ended without a line with HOST:PORT")
    return address


async def run(config: DistributedConfig, manager: ServiceManager, logs: LogContext) -> None:
    """The life of the process: listens, registers, serves until SIGTERM, Ctrl-C or a Drain. `manager` is told of it.

    Raises:
        WorkerError: the port is taken, the coordinator refuses this worker, or its engine has a defect.
        DeviceError: there is no such device.
        SecretFileError, TlsError: a file can't be used.
    """
    from .device_health import DeviceWatch, open_probe
    from .engine import Engine
    from .giving_up import give_up, give_up_with_device
    from .leaving import Departure
    from .membership import Membership, RefusedError
    from .process_groups import ProcessGroupManager
    from .security import WorkerSecurity
    from .service import ShardWorkerServicer
    from .service_report import report

    loop = asyncio.get_running_loop()

    def changed() -> None:
        fault = engine.status.fault
        if (
            fault is not None and fault.kind == "device"
        ):  # the device's context is lost, and the weights with it
            watch.fail(fault.message)
        servicer.group_changed()
        membership.changed()

    security = WorkerSecurity(config)
    groups = ProcessGroupManager(config.coordinator, host=config.host, dialer=security.dialer)
    groups.prepare()
    engine = Engine(
        config,
        groups,
        publish=lambda response: _call(loop, servicer.publish, response),
        on_change=lambda: _call(loop, changed),
        logs=logs,
    )
    device_failed = asyncio.Event()
    watch = DeviceWatch(open_probe(config.device), on_failure=lambda: _call(loop, device_failed.set))
    membership = Membership(
        config,
        engine,
        health=lambda: watch.reading,
        named_epoch=lambda: servicer.epoch,
        dialer=security.dialer,
    )

    departure = Departure(engine, membership, manager, timeout_s=config.drain_timeout_s)
    servicer = ShardWorkerServicer(engine, on_drain=departure.told, on_stuck=give_up)
    server = security.server()
    port = _listen(server, servicer, config, security)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, departure.asked, signal.Signals(number).name)
    engine.start()
    await asyncio.to_thread(watch.start)
    await server.start()
    registration = asyncio.create_task(membership.run(f"{config.host}:{port}"))
    stopping = asyncio.create_task(departure.wait())
    watching = asyncio.create_task(give_up_with_device(device_failed, watch, membership))
    manager.ready(f"waiting for the coordinator at {config.coordinator}")
    reporting = asyncio.create_task(report(manager, engine, membership, config.coordinator))
    try:
        await _first_of(registration, stopping, asyncio.wrap_future(engine.ended))
    except RefusedError as error:
        raise WorkerError(f"the coordinator at {config.coordinator} refused this worker: {error}") from None
    finally:
        await _cancel(registration, stopping, watching)
        for close in (watch.close, engine.close):
            await asyncio.to_thread(close)
        await server.stop(grace=0.5)
        await asyncio.to_thread(groups.close)
        await _cancel(reporting)  # the watchdog looks on until the process is gone


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _listen(
    server: Any, servicer: ShardWorkerServicer, config: DistributedConfig, security: WorkerSecurity
) -> int:
    """→ the port."""
    from ryzanstein.v1 import shard_worker_pb2_grpc

    shard_worker_pb2_grpc.add_ShardWorkerServiceServicer_to_server(servicer, server)
    try:
        return security.listen(server, f"{config.host}:{config.port}")
    except RuntimeError as error:
        raise WorkerError(
            f"can't listen on {config.host}:{config.port}: {error}; choose another --port"
        ) from None


async def _first_of(
    registration: asyncio.Future[None], stopping: asyncio.Future[Any], ended: asyncio.Future[None]
) -> None:
    """Until the worker is to stop, or can't go on: then it raises why."""
    waited: list[asyncio.Future[Any]] = [registration, stopping, ended]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if registration.done():
        registration.result()
    if ended.done() and (defect := ended.exception()) is not None:
        raise WorkerError(f"the engine thread ended: {type(defect).__name__}: {defect}") from defect


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Hands a call from the engine thread to the loop; after the loop's end there is nobody to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _choose_device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
