"""A cluster of its own for `ryzanstein demo`: one child process that ends whatever happens to its parent."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ryzanstein.program import EXIT_USAGE, ProgramError
from ryzanstein.settings import ENVIRONMENT_PREFIX

_READY = re.compile(r"^ready grpc=(?P<grpc>\S+) http=(?P<http>\S+) model=(?P<model>\S+).*\n", re.MULTILINE)
_PR_SET_PDEATHSIG = 1
_LOG_LINES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Ready:
    """What the ready line says."""

    grpc: str
    http: str
    model: str


def bundled_model() -> Path:
    """The directory of the model that comes with the coordinator, found without importing it."""
    spec = importlib.util.find_spec("ryzanstein_coordinator")
    for package in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(package) / "bundled_model"
        if (directory / "config.json").is_file():
            return directory
    raise ProgramError(
        "the bundled model is not installed: pip install 'ryzanstein[coordinator,worker]'",
        exit_code=EXIT_USAGE,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on. Known in advance so that the start can be watched."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class DemoCluster:
    """`ryzanstein serve` as a child process.

    Leaving the `with` block ends it: SIGTERM, a second one after `drain_s`, SIGKILL after `kill_s` more. Should this
    process be killed itself, the kernel sends the child SIGTERM.
    """

    def __init__(
        self, command: Sequence[str], *, grpc_port: int, drain_s: float = 10.0, kill_s: float = 5.0
    ) -> None:
        self._command = list(command)
        self._drain_s = drain_s
        self._kill_s = kill_s
        self._output = b""
        self.grpc_port = grpc_port
        self.log_path = Path()
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        log, name = tempfile.mkstemp(prefix="ryzanstein-demo-", suffix=".log")
        self.log_path = Path(name)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)
        }
        try:
            # In a session of its own: Ctrl-C reaches this process alone, which then ends the child in order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread runs yet
            )
        except BaseException:  # interrupted on the way; a child that is not known yet ends with this process
            if hasattr(self, "_process"):
                self._kill()
            self.log_path.unlink()
            raise
        finally:
            os.close(log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            try:
                self._end()
            except KeyboardInterrupt:  # one who can't wait
                self._kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.log_path.unlink(missing_ok=True)

    def wait_ready(self, timeout_s: float, watch: Callable[[], None], *, every_s: float = 0.1) -> Ready:
        """What the ready line says; calls `watch` meanwhile. Raises ProgramError with the end of the log."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self._read(every_s)
            match = _READY.search(self._output.decode(errors="replace"))
            if match:
                return Ready(match["grpc"], match["http"], match["model"])
            if self._process.poll() is not None:
                raise self._failed(
                    f"the cluster ended with code {self._process.returncode} before it was ready"
                )
            watch()
        raise self._failed(f"the cluster was not ready within {timeout_s:g} s")

    def stop(self) -> int:
        """Ends the cluster in order; its exit code."""
        self._end()
        return self._process.returncode

    def _end(self) -> None:
        for patience_s in (self._drain_s, self._kill_s):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
                return
        self._kill()

    def _kill(self) -> None:
        # The workers die with it: the supervisor has the kernel see to that.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self, timeout_s: float) -> None:
        """Takes in what the child prints within the time. Not in a thread: it would still read when this process
        ends, and an interpreter that shuts down under a thread may end in a crash."""
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], timeout_s)[0]:
            data = os.read(self._process.stdout.fileno(), 65536)
            self._output += data
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it is about to end
                    self._process.wait(timeout_s)

    def _failed(self, what: str) -> ProgramError:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[-_LOG_LINES_SHOWN:]:
            sys.stderr.write(f"  {line}\n")
        return ProgramError(f"{what}; its whole log is in {self.log_path}")


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
