"""The coordinator's process: reads the model, opens the ports, wires all parts, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from fastapi import FastAPI

from ryzanstein import __version__, failpoints
from ryzanstein.program import announce
from ryzanstein.service_manager import ServiceManager

from .admission import AdmissionLimits
from .cluster_metrics import ClusterCollector
from .config import OrchestratorConfig
from .dashboard import dashboard_routes
from .epoch_store import EpochStore
from .front_door import FrontDoor
from .grpc_servers import GrpcServers
from .guards import HttpGuard
from .http_operations import operations_routes
from .http_server import HttpServer, address, bind
from .intake import Intake
from .metrics import Metrics
from .openai import EarlyRefusal, Edge, install_errors, openai_routes
from .orchestrator import MultiGPUOrchestrator
from .prompts import ModelFacts
from .rendezvous import RendezvousStore
from .request_log import SqliteRequestLog
from .router import Router, RouterConfig
from .security import Security, allow_many_connections
from .served_model import ServedModel, read_served_model
from .service import InferenceServicer
from .service_report import report
from .state_dir import StateError, own
from .tokenization import read_tokenizer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the beginning and the end of serving need."""

    orchestrator: MultiGPUOrchestrator
    front_door: FrontDoor
    #: As the ready line has them.
    addresses: str


#: Beyond the drain: for closing connections and files.
_CLOSING_S = 10.0


async def run_coordinator(config: OrchestratorConfig, manager: ServiceManager) -> None:
    """Serves until SIGTERM or SIGINT; the first drains, a second one ends at once. `manager` is told of it.

    SIGUSR2 makes way for a successor at once: nothing is refused and no stream ended, callers and workers lose the
    connection and go on with the coordinator that comes next.

    Raises:
        ModelError, ConfigError: the model can't be served so.
        ListenError: a port is taken.
        StateError, StoreError: the state directory can't be written, or another coordinator has it.
    """
    failpoints.identify("coordinator")
    allow_many_connections()
    stop, stop_now, make_way = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        (stop_now if stop.is_set() else stop).set()

    def asked_to_make_way() -> None:
        make_way.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGUSR2, asked_to_make_way)
    model = read_served_model(config)
    with own(config.state_dir):
        async with _serving(config, model, make_way) as parts:
            ready_line = asyncio.create_task(_tell_when_ready(parts))
            manager.ready("listening")
            reporting = asyncio.create_task(report(manager, parts.orchestrator))
            try:
                await stop.wait()
                if make_way.is_set():
                    log.info("making_way")
                    manager.stopping("making way for a successor", within_s=_CLOSING_S)
                else:
                    manager.stopping("draining", within_s=config.drain_timeout_s + _CLOSING_S)
                    await _drain(parts, config.drain_timeout_s, stop_now)
            finally:
                ready_line.cancel()
                reporting.cancel()


@contextlib.asynccontextmanager
async def _serving(
    config: OrchestratorConfig, model: ServedModel, make_way: asyncio.Event
) -> AsyncIterator[_Parts]:
    """All parts, wired and running; closed in the opposite order. With `make_way` set, for a successor."""
    security = Security(config)
    tokenizer = read_tokenizer(config.model_dir)
    metrics = Metrics()
    try:
        store = EpochStore(config.state_dir)
        request_log = SqliteRequestLog(
            config.state_dir / "requests.sqlite",
            fingerprint=model.fingerprint,
            on_failure=lambda: metrics.store_failed("requests"),
        )
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"--state-dir {config.state_dir} can't be used: {error}") from error
    rendezvous = RendezvousStore()
    orchestrator = MultiGPUOrchestrator(
        config,
        model,
        store,
        rendezvous=rendezvous,
        observer=metrics,
        activity=metrics.activity,
        lines=security,
    )
    metrics.registry.register(ClusterCollector(orchestrator))
    router = Router(
        RouterConfig(
            no_group_grace_s=config.replacement_wait_s + 15.0, default_max_num_seqs=config.max_num_seqs
        ),
        metrics=metrics,
        events=orchestrator,
    )
    orchestrator.attach(router)

    def facts() -> ModelFacts:
        return ModelFacts(
            name=model.name,
            max_model_len=orchestrator.max_model_len,
            vocab_size=model.config.vocab_size,
            eos_token_ids=model.config.eos_token_ids,
            architecture=model.config.architecture,
            dtype=orchestrator.dtype,
            parameters=model.parameters,
        )

    intake = Intake(facts, tokenizer)
    waiting = AdmissionLimits(
        max_waiting=config.max_waiting_requests, max_waiting_tokens=config.max_waiting_tokens
    )
    front_door = FrontDoor(intake=intake, router=router, admission=waiting, log=request_log, metrics=metrics)
    inference = InferenceServicer(front_door, intake, owner_of=security.owner_of)
    servers = GrpcServers(config, security, orchestrator, rendezvous, inference)
    listener = bind(config.host, config.http_port, flag="--http-port")
    # FastAPI's own pages load their scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="Ryzanstein", version=__version__, docs_url=None, redoc_url=None)
    install_errors(app)
    app.include_router(dashboard_routes())
    app.include_router(operations_routes(orchestrator, metrics))
    app.include_router(openai_routes(front_door, intake))
    guarded = HttpGuard(EarlyRefusal(app, front_door), security.keys, security.refusals)
    http_server = HttpServer(
        Edge(guarded), listener, security.tls.http_context() if security.tls.serves else None
    )
    async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as closing:
        # Whatever fails on the way, each of these ends; the last one first.
        closing.push_async_callback(request_log.close)
        closing.callback(intake.close)
        await orchestrator.start(tasks)
        front_door.restore(request_log.restore())
        watching = tasks.create_task(front_door.run(), name="front-door")
        closing.callback(watching.cancel)
        serving = tasks.create_task(http_server.run_until_stopped(), name="http")
        closing.push_async_callback(_stop_http, http_server, serving)
        closing.push_async_callback(servers.stop, 0.5)
        await servers.start()

        async def close_orchestrator(defect: type[BaseException] | None, *_: object) -> None:
            # After a defect another coordinator is about to come, and the workers wait for it with their weights.
            for_good = config.stop_workers and defect is None and not make_way.is_set()
            await orchestrator.close(drain_workers=for_good)

        closing.push_async_exit(close_orchestrator)
        closing.callback(router.close)
        scheme = "https" if security.tls.serves else "http"
        http_address = f"{scheme}://{address(config.host, listener.getsockname()[1])}"
        addresses = f"grpc={address(config.host, servers.port)} http={http_address}"
        announce(f"listening {addresses} members={servers.member_address or ''}")
        log.info("listening", addresses=addresses, model=model.name)
        yield _Parts(orchestrator, front_door, addresses)


async def _stop_http(server: HttpServer, serving: asyncio.Task[None]) -> None:
    server.stop()
    await serving


async def _tell_when_ready(parts: _Parts) -> None:
    """The one line, as soon as a request would be generated: to the parent, or else on standard output."""
    async for snapshot in parts.orchestrator.watch():
        if snapshot is not None and parts.orchestrator.readiness()[0]:
            line = (
                f"ready {parts.addresses} model={snapshot.model.name} "
                f"tensor_parallel={snapshot.groups[0].tensor_parallel_size} epoch={snapshot.epoch}"
            )
            if not announce(line):
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            return


async def _drain(parts: _Parts, timeout_s: float, stop_now: asyncio.Event) -> None:
    """Lets running streams end, as long as there is time and nobody insists."""
    log.info("draining", timeout_s=timeout_s)
    parts.front_door.refuse("the server is stopping")
    parts.orchestrator.begin_drain()
    idle = asyncio.create_task(parts.front_door.idle())
    insisted = asyncio.create_task(stop_now.wait())
    await asyncio.wait({idle, insisted}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        parts.front_door.end_all("the server has stopped")
    for task in (idle, insisted):
        task.cancel()
