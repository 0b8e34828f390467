"""Pictures of the dashboard in its states, from a real cluster: docs/images/dashboard-*.png.

Needs chromium and playwright. Run `python -m tools.dashboard_screenshots` after a change of the page; takes a minute
and a half. Each state is brought about, not drawn: workers start late, are held while they load, are killed, and the
coordinator is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ryzanstein_client import Client

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = ROOT / "coordinator" / "ryzanstein_coordinator" / "bundled_model"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 375, "height": 812}
STREAMS = 10


class Programs:
    """The processes of a cluster that nobody starts again by himself."""

    def __init__(self, directory: Path) -> None:
        self._failpoints = directory / "failpoints"
        self._failpoints.mkdir()
        self._log = (directory / "log").open("wb")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._state = directory / "state"
        self.grpc = self.http = ""

    def coordinator(self) -> None:
        """Two ranks; one missing is replaced by a smaller group after five seconds."""
        words = [
            "coordinator",
            str(MODEL),
            "--tensor-parallel-size",
            "2",
            "--grpc-port",
            "0",
            "--http-port",
            "0",
        ]
        words += ["--state-dir", str(self._state), "--replacement-wait", "5", "--kv-cache-memory", "8MiB"]
        words += ["--max-model-len", "1024"]
        reader, writer = os.pipe()
        self._start("coordinator", "ryzanstein_coordinator", words, announce=writer)
        os.close(writer)
        with os.fdopen(reader) as announced:
            fields = dict(word.split("=", 1) for word in announced.readline().split()[1:])
        self.grpc, self.http = fields["grpc"], fields["http"]

    def worker(self, name: str) -> None:
        words = [
            "shard-worker",
            "--coordinator",
            self.grpc,
            "--worker-id",
            name,
            "--device",
            "cpu",
            "--cpu-threads",
            "1",
        ]
        self._start(name, "ryzanstein_shard_worker", words)

    def arm(self, point: str, process: str, action: str) -> None:
        (self._failpoints / f"{point}@{process}").write_text(action, encoding="utf-8")

    def signal(self, name: str, number: signal.Signals) -> None:
        self._running[name].send_signal(number)

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        self._log.close()

    def _start(self, name: str, module: str, words: list[str], announce: int | None = None) -> None:
        environment = {**os.environ, "RYZANSTEIN_FAILPOINTS": str(self._failpoints), "OMP_NUM_THREADS": "1"}
        if announce is not None:
            environment["RYZANSTEIN_ANNOUNCE_FD"] = str(announce)
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=() if announce is None else (announce,),
        )

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + 60
        while True:
            with urllib.request.urlopen(f"{self.http}/cluster", timeout=10) as reply:
                snapshot = json.load(reply)
            if wanted(snapshot):
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"it did not come to that: {snapshot}")
            time.sleep(0.05)


@contextlib.contextmanager
def streams(address: str) -> Iterator[None]:
    """Requests of many lengths, for as long as the block lasts."""
    over = threading.Event()

    def ask(number: int) -> None:
        chance = random.Random(number)
        with Client(address) as client, contextlib.suppress(Exception):
            while not over.is_set():
                prompt = [chance.randrange(3, 1000) for _ in range(chance.randrange(20, 300))]
                for _ in client.stream(prompt, max_tokens=chance.randrange(20, 400), ignore_eos=True):
                    if over.is_set():
                        return

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()


def take(programs: Programs, browser: Any) -> None:
    """All of them, in the order of a cluster's life."""
    page = browser.new_page(viewport=DESKTOP, color_scheme="light")

    def picture(name: str, settle_s: float = 1.2) -> None:
        page.wait_for_timeout(settle_s * 1000)
        page.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=True)
        sys.stdout.write(f"{name}: {page.title()}\n")

    page.goto(programs.http + "/")
    picture("waiting")
    for name in ("worker-0", "worker-1"):
        programs.arm("load.progressed", name, "sleep 8 12")
        programs.worker(name)
    programs.until(lambda snapshot: snapshot["state"] == "loading")
    picture("loading", 2.0)
    programs.until(lambda snapshot: snapshot["state"] == "serving")
    programs.worker("worker-2")
    page.get_by_role("textbox", name="Prompt").fill("What is 347 + 285?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_timeout(3000)
    with streams(programs.grpc):
        page.wait_for_timeout(25_000)
        programs.signal("worker-1", signal.SIGKILL)  # the spare takes its rank
        page.wait_for_timeout(15_000)
        picture("serving")
        windows: dict[str, dict[str, Any]] = {
            "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
            "phone": {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2},
        }
        for name, settings in windows.items():
            other = browser.new_page(**settings)
            other.goto(programs.http + "/")
            other.wait_for_timeout(2500)
            other.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=name != "phone")
            other.close()
        programs.signal("worker-2", signal.SIGKILL)  # and there is no other
        picture("recovering", 1.5)
        programs.until(lambda snapshot: snapshot["state"] == "degraded")
        picture("degraded", 3.0)
        programs.signal("coordinator", signal.SIGSTOP)
        picture("disconnected", 6.0)
        programs.signal("coordinator", signal.SIGCONT)


def main() -> None:
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as driver:
        programs = Programs(Path(directory))
        try:
            programs.coordinator()
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            with driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments) as browser:
                take(programs, browser)
        finally:
            programs.close()


if __name__ == "__main__":
    main()
