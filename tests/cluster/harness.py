"""A real cluster for tests: `ryzanstein serve` as a child process, with its coordinator, workers, ports and files."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

BUNDLED_MODEL = Path(__file__).parents[2] / "coordinator" / "ryzanstein_coordinator" / "bundled_model"
READY = re.compile(
    r"ready grpc=(?P<grpc>\S+) http=(?P<http>\S+) model=(?P<model>\S+) "
    r"tensor_parallel=(?P<size>\d+) epoch=(?P<epoch>\d+)"
)
#: Variables of the outer environment that would configure the programs under test.
_FOREIGN = ("RYZANSTEIN_", "GRPC_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
#: Coverage follows the child processes.
MEASURED = "COVERAGE_PROCESS_CONFIG" in os.environ or "COVERAGE_PROCESS_START" in os.environ


def environment() -> dict[str, str]:
    """The test's environment without settings that a developer's shell may hold."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    return {**kept, "PYTHONUNBUFFERED": "1"}


class Program:
    """A child process with its output at hand. Ends with the test, whatever happens."""

    def __init__(
        self,
        *arguments: str,
        module: str = "ryzanstein_coordinator",
        command: list[str] | None = None,
        failpoints: Path | None = None,
    ) -> None:
        """`failpoints`: the directory where `ryzanstein.failpoints` of its processes are armed."""
        self.command = command or [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | ({"RYZANSTEIN_FAILPOINTS": str(failpoints)} if failpoints else {}),
            start_new_session=True,
        )
        self.stderr_lines: list[str] = []
        self._stdout: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stderr(self) -> str:
        return "".join(self.stderr_lines)

    def line(self, timeout_s: float = 60.0) -> str:
        """The next line of standard output. Fails with what the program said on standard error."""
        try:
            line = self._stdout.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no output within {timeout_s} s; standard error:\n{self.stderr}") from None
        if line is None:
            raise AssertionError(f"ended with {self.wait(5)}; standard error:\n{self.stderr}")
        return line.rstrip("\n")

    def wait_for_log(self, text: str, timeout_s: float = 60.0) -> None:
        """Until standard error holds the text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.stderr:
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.stderr}"
            time.sleep(0.005)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(timeout=5)
        return code

    def terminate(self, timeout_s: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        """Kills the whole tree. Where coverage is measured it may end in order before: what is killed tells nothing."""
        if MEASURED and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(20)
        tree = self.children()
        if self.process.poll() is None:
            self.process.kill()
        for child in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(tree, timeout=10)
        self.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(
                f"--- standard error of {' '.join(self.command[2:])}\n{self.stderr[-8000:]}", file=sys.stderr
            )
        self.close()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._stdout.put(line)
        self._stdout.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr_lines.append(line)


class Cluster(Program):
    """`ryzanstein serve MODEL` on free ports. The constructor returns when it runs, `ready` when it serves."""

    def __init__(
        self,
        state_dir: Path,
        model: Path = BUNDLED_MODEL,
        *flags: str,
        tensor_parallel_size: int = 2,
        failpoints: Path | None = None,
    ) -> None:
        super().__init__(
            "serve",
            str(model),
            "--tensor-parallel-size",
            str(tensor_parallel_size),
            "--grpc-port",
            "0",
            "--http-port",
            "0",
            "--state-dir",
            str(state_dir),
            "--device",
            "cpu",
            *flags,
            failpoints=failpoints,
        )
        self.grpc = self.http = ""

    def ready(self, timeout_s: float = 60.0) -> Self:
        line = self.line(timeout_s)
        found = READY.fullmatch(line)
        assert found, f"not a ready line: {line!r}"
        self.grpc, self.http = found["grpc"], found["http"]
        return self

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """HTTP status and body."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=timeout_s) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def snapshot(self) -> dict[str, Any]:
        """What /cluster says."""
        status, body = self.get("/cluster")
        assert status == 200, body
        loaded: dict[str, Any] = json.loads(body)
        return loaded

    def join_token_file(self, directory: Path) -> Path:
        """A copy of the token that `serve` made for its own, which only a process of the same user can read."""
        for child in self.children():
            words = child.cmdline()
            if "coordinator" in words and "--join-token-file" in words:
                descriptor = Path(words[words.index("--join-token-file") + 1]).name
                copy = directory / "join-token"
                copy.write_bytes(Path(f"/proc/{child.pid}/fd/{descriptor}").read_bytes())
                copy.chmod(0o600)
                return copy
        raise AssertionError("no coordinator runs")

    def workers(self) -> list[dict[str, Any]]:
        """Those that have a rank, in the order of the ranks."""
        placed = [worker for worker in self.snapshot()["workers"] if worker["rank"] is not None]
        return sorted(placed, key=lambda worker: int(worker["rank"]))

    def wait_for(self, wanted: Any, what: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Polls /cluster until `wanted(snapshot)` holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            snapshot = self.snapshot()
            if wanted(snapshot):
                return snapshot
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s: {snapshot}"
            time.sleep(0.02)
