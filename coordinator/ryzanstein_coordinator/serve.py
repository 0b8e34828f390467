"""`ryzanstein serve`: the parent of one coordinator and its local workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from ryzanstein.join_proof import new_token, read_tokens
from ryzanstein.processors import read_processors
from ryzanstein.program import EXIT_FAILED, EXIT_USAGE
from ryzanstein.settings import ENVIRONMENT_PREFIX, environment_variable

from .api_keys import read_keys
from .config import ConfigError, OrchestratorConfig
from .local_devices import local_shares, pinned_processors
from .resource_allocator import ResourceAllocator
from .served_model import read_served_model
from .supervisor import Child, Supervisor, announcements

log = structlog.get_logger(__name__)

#: Where a spare can take a dead worker's rank, that worker is started again so much later: by then the streams flow
#: again. A start takes a processor for seconds.
_AFTER_THE_REPLAY_S = 1.0

#: These are for every process.
_FOR_ALL = (environment_variable("--debug"), "RYZANSTEIN_FAILPOINTS")

#: Without a sign of life for so long a child hangs, as its systemd unit has it. A worker waits for its peers for
#: --collective-timeout before it can say anything.
_COORDINATOR_WATCHDOG_S, _WORKER_WATCHDOG_S = 10.0, 60.0

#: For a worker to end after the coordinator has: it only has to leave its group.
_WORKER_STOP_S = 5.0


async def run_serve(config: OrchestratorConfig, arguments: Sequence[str]) -> int:
    """Runs until SIGTERM or Ctrl-C; the first drains, a second one kills at once.

    Args:
        config: what `arguments` say.
        arguments: those of `serve`; the coordinator is started with the same.

    Returns:
        The exit code: 0 after a drain, 1 after a forced stop, the coordinator's own if it can't run.

    Raises:
        ModelError, ConfigError, DeviceCountError, SecretFileError, TlsError: before anything is started.
    """
    # What can't work is told at once, by one process: a bad directory or rank count, too little memory.
    model = read_served_model(config)
    shares = local_shares(config.device, config.worker_count)
    plan = ResourceAllocator(config, model.config).plan(
        config.tensor_parallel_size, shares[: config.tensor_parallel_size]
    )
    if not plan.fits:
        raise ConfigError(f"{config.model_name} does not fit: {plan.refusal}")
    with _join_token(config.join_token_file) as (token_file, inherited):
        config.tls.check()
        if config.api_key_file is not None:
            read_keys(config.api_key_file)
        read_tokens(token_file)
        parent = _Parent(config, [share.kind for share in shares], list(arguments), token_file, inherited)
        return await parent.run()


@contextlib.contextmanager
def _join_token(given: Path | None) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """The file with the token of this cluster, and the open files that children must inherit to read it.

    Where none is given one is made for this cluster alone. It lies in memory, behind a file descriptor that only the
    children get: not in an argument or the environment, which other programs of this user log and show, and not on a
    disk, where it would stay when this process is killed.
    """
    if given is not None:
        yield given, ()
        return
    descriptor = os.memfd_create("ryzanstein-join-token", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o400)
        os.write(descriptor, new_token())
        yield Path(f"/dev/fd/{descriptor}"), (descriptor,)
    finally:
        os.close(descriptor)


class _Parent:
    def __init__(
        self,
        config: OrchestratorConfig,
        kinds: list[str],
        arguments: list[str],
        token_file: Path,
        inherited: tuple[int, ...],
    ) -> None:
        """
        Args:
            kinds: "cpu" or "cuda", of the device of each worker.
            token_file: of the join token, as the children see it.
            inherited: open files that they need for that.
        """
        self._config = config
        self._kinds = kinds
        self._arguments = arguments
        self._join = ["--join-token-file", str(token_file)]
        self._inherited = inherited
        allowed = os.sched_getaffinity(0)
        self._threads = config.cpu_threads or max(1, len(allowed) // len(kinds))
        #: The processors of each worker, always the same: one that is started again has them for itself, and a spare
        #: has its own. Empty: any.
        self._pinned: tuple[str, ...] = ()
        if set(kinds) == {"cpu"}:
            processors = read_processors(allowed)
            self._pinned = pinned_processors(processors, len(kinds), self._threads, config.cpu_pinning)
        self._supervisor = Supervisor()
        self._stop, self._kill = asyncio.Event(), asyncio.Event()
        #: HOST:PORT of the coordinator's gRPC server, once it listens; of HTTP; and where its own workers register, if
        #: not with all others.
        self._grpc = self._http = self._members = ""
        self._listening = asyncio.Event()
        self._was_ready = False
        #: Exit code of a worker that can't run as configured.
        self._worker_failure = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        coordinator = asyncio.create_task(self._keep_coordinator())
        stop = asyncio.create_task(self._stop.wait())
        # While the coordinator starts they load their libraries, and are told its address when it listens.
        workers = [asyncio.create_task(self._keep_worker(name)) for name in self._worker_names]
        try:
            await asyncio.wait({coordinator, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():  # the coordinator ended for good, and has said why
                code = coordinator.result()
                return code if code >= 0 else EXIT_FAILED  # a signal's number is no exit code
            code = await self._shut_down(coordinator, workers)
            return self._worker_failure or code
        finally:
            self._supervisor.kill_all()
            for task in (coordinator, stop, *workers):
                task.cancel()
            await asyncio.gather(coordinator, stop, *workers, return_exceptions=True)

    @property
    def _worker_names(self) -> list[str]:
        return [f"worker-{number}" for number in range(len(self._kinds))]

    def _signalled(self) -> None:
        (self._kill if self._stop.is_set() else self._stop).set()

    async def _keep_coordinator(self) -> int:
        child = Child(
            "coordinator",
            self._coordinator_arguments,
            {},
            files=self._inherited,
            watchdog_s=_COORDINATOR_WATCHDOG_S,
        )
        return await self._supervisor.keep(
            child,
            # Before it listens for the first time its failure is the user's to mend: a taken port, a bad flag.
            is_final=lambda code: code in (0, EXIT_USAGE) or not self._listening.is_set(),
            on_start=self._coordinator_announced,
        )

    def _coordinator_arguments(self) -> list[str]:
        """As `serve` was called; a restarted one gets the ports that the first one found."""
        arguments = ["coordinator", *self._arguments[self._arguments.index("serve") + 1 :], "--stop-workers"]
        arguments += self._join
        if (
            self._config.tls.serves
        ):  # its own workers need no certificates: nothing of theirs leaves the machine
            arguments += ["--member-port", self._members.rpartition(":")[2] or "0"]
        if self._grpc:
            arguments += ["--grpc-port", self._grpc.rpartition(":")[2]]
            arguments += ["--http-port", self._http.rpartition(":")[2]]
        return ["-m", "ryzanstein_coordinator", *arguments]

    async def _coordinator_announced(self, reader: int) -> None:
        """Follows one life of the coordinator. The ready line is for its first: scripts wait for one line."""
        async for line in announcements(reader):
            kind, _, rest = line.partition(" ")
            if kind == "listening":
                fields = dict(word.split("=", 1) for word in rest.split())
                self._grpc, self._http, self._members = fields["grpc"], fields["http"], fields["members"]
                self._listening.set()
            elif self._was_ready:
                log.warning("coordinator_back", ready=rest)
            else:
                self._was_ready = True
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    async def _address_for_workers(self) -> str:
        """As soon as the coordinator listens."""
        await self._listening.wait()
        return self._members or self._grpc

    async def _keep_worker(self, name: str) -> None:
        names = self._worker_names
        arguments = ["-m", "ryzanstein_shard_worker", "shard-worker", *self._join]
        arguments += ["--coordinator", "-"]
        number = names.index(name)
        device = "cpu" if self._kinds[number] == "cpu" else f"cuda:{number}"
        arguments += ["--worker-id", name, "--device", device]
        threads = self._threads
        if number < len(self._pinned):
            arguments += ["--cpu-pinning", self._pinned[number]]
        # All of the group is on this machine: whatever the coordinator listens on, nobody else needs to reach them.
        arguments += ["--cpu-threads", str(threads), "--host", "127.0.0.1"]
        arguments += ["--log-format", self._config.log_format, "--log-level", self._config.log_level]
        # Libraries would otherwise start a thread for each processor in every worker.
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # What the environment sets is meant for `serve`: its certificate, its host, its file of flags. Empty is unset.
        environment |= {
            name: "" for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) and name not in _FOR_ALL
        }
        watchdog_s = max(_WORKER_WATCHDOG_S, 2 * self._config.collective_timeout_s)
        child = Child(
            name,
            lambda: arguments,
            environment,
            self._restart_after_s,
            self._inherited,
            watchdog_s=watchdog_s,
            told=self._address_for_workers,
        )
        leaves = asyncio.Event()

        async def follow(reader: int) -> None:
            leaves.clear()
            async for line in announcements(reader):
                if line == "leaving":
                    leaves.set()

        code = await self._supervisor.keep(
            child,
            # 0 alone proves nothing: some library's exit(0) is a death like any other.
            is_final=lambda code: code == EXIT_USAGE or (code == 0 and leaves.is_set()),
            on_start=follow,
        )
        if code == EXIT_USAGE and not self._stop.is_set():
            log.error("stopping", reason=f"{name} can't run as configured")
            self._worker_failure = code
            self._stop.set()

    def _restart_after_s(self) -> float:
        """The streams come first, unless they wait for just this worker: too few others run for all ranks."""
        others = self._supervisor.running.intersection(self._worker_names)
        ranks = self._config.worker_count - self._config.spares
        return _AFTER_THE_REPLAY_S if len(others) >= ranks else 0.0

    async def _shut_down(self, coordinator: asyncio.Task[int], workers: list[asyncio.Task[None]]) -> int:
        """Coordinator first: it lets streams end and asks the workers to leave."""
        ordered = asyncio.create_task(self._stop_in_order())
        killed = asyncio.create_task(self._kill.wait())
        await asyncio.wait({ordered, killed}, return_when=asyncio.FIRST_COMPLETED)
        if not ordered.done():
            log.warning("killed", reason="a second signal")
            self._supervisor.kill_all()
        for task in (ordered, killed):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(coordinator, *workers)
        return 1 if self._kill.is_set() else 0

    async def _stop_in_order(self) -> None:
        # It asks the workers to leave; until then one that dies is started again: running streams wait for its rank.
        # The coordinator keeps its own time; the rest is for closing its connections.
        await self._supervisor.stop("coordinator", self._config.drain_timeout_s + 10.0)
        await asyncio.gather(*(self._supervisor.stop(name, _WORKER_STOP_S) for name in self._worker_names))
