"""A machine of its own for the services: a real systemd as process 1 (see boot.sh), in which they are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parents[2]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where the services' Python finds what the tests' own has.
SITE, SOURCE = "/srv/site-packages", "/srv/ryzanstein"
SYSTEM_PYTHON = Path("/usr/bin/python3")


def missing() -> str:
    """Why there can be no such machine here; empty if there can."""
    if os.geteuid() != 0:
        return "namespaces with a systemd of their own need root"
    for program in (
        "/usr/lib/systemd/systemd",
        "/usr/bin/systemctl",
        "/usr/bin/dbus-daemon",
        str(SYSTEM_PYTHON),
    ):
        if not Path(program).exists():
            return f"{program} is not there"
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} (util-linux) is not there"
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys, venv; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = " ".join(map(str, sys.version_info[:2]))
    if version.stdout.strip() != ours:
        return f"services need a Python {ours} that every user can read, and {SYSTEM_PYTHON} is none"
    return ""


class BootError(Exception):
    """No systemd can be started here; the message is what it said."""


class Machine:
    """Runs from the constructor on, until `close`."""

    def __init__(self, directory: Path) -> None:
        """Raises BootError."""
        self._directory = directory
        (directory / "t").mkdir()
        site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        self._boot = subprocess.Popen(
            [
                "/bin/bash",
                Path(__file__).with_name("boot.sh"),
                directory,
                f"{site}={SITE}",
                f"{REPOSITORY}={SOURCE}",
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_until_booted()
        except BaseException:
            self.close()
            raise

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 60.0, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, as root; `text` is its standard input. Raises AssertionError with what it said."""
        done = subprocess.run(
            [*self._enter(), *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command inside that goes on meanwhile."""
        return subprocess.Popen(
            [*self._enter(), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """→ standard output."""
        return self.run("systemctl", *arguments, check=check).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        """What `systemctl show` says of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def write(self, path: str, content: str) -> None:
        """A file inside."""
        self.run("bash", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "bash", path, text=content)

    def journal(self, unit: str = "") -> str:
        """What was logged, by one unit or by all."""
        return self.run(
            "journalctl", "--no-pager", "--output=cat", *(["--unit", unit] if unit else [])
        ).stdout

    def wait_for(self, wanted: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Until it holds. Fails with the end of the journal."""
        deadline = time.monotonic() + timeout_s
        while not wanted():
            assert time.monotonic() < deadline, (
                f"{what} did not happen within {timeout_s} s; {self.journal()[-6000:]}"
            )
            time.sleep(0.05)

    def signal(self, unit: str, number: signal.Signals) -> None:
        """To the main process of the unit."""
        self.systemctl("kill", "--kill-whom=main", f"--signal={number.name}", unit)

    def close(self) -> None:
        """Ends all processes of the machine."""
        with contextlib.suppress(ProcessLookupError):
            self._boot.terminate()
        try:
            self._boot.wait(20)
        except subprocess.TimeoutExpired:
            self._boot.kill()
            self._boot.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self) -> list[str]:
        outer = (self._directory / "pid").read_text().strip()
        inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        if not inner:
            raise BootError(self._log())
        environment = ["env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8"]
        return ["nsenter", "-t", inner[0], "-a", "-r", "-w", *environment]

    def _wait_until_booted(self, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._boot.poll() is not None:
                break
            if (self._directory / "pid").exists():
                with contextlib.suppress(BootError, FileNotFoundError):
                    if self.systemctl("is-system-running", check=False) in ("running", "degraded"):
                        return
            time.sleep(0.05)
        raise BootError(self._log())

    def _log(self) -> str:
        log = self._directory / "boot.log"
        return "systemd did not come up: " + (log.read_text()[-2000:] if log.exists() else "")
