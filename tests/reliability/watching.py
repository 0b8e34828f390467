"""What an outsider sees while things break: health every few milliseconds, and what a process holds."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil


class HealthWatch:
    """Asks /health again and again over one connection. `answers` are (when asked, when answered, status)."""

    def __init__(self, http_url: str, every_s: float = 0.005) -> None:
        self._host = urlsplit(http_url).netloc
        self.answers: list[tuple[float, float, int]] = []
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(10)

    def falsely_well_s(self, broken_at: float, again_at: float) -> float:
        """How long after the fault /health still said 200, while nothing could be generated."""
        wrong = [
            answered
            for asked, answered, status in self.answers
            if status == 200 and broken_at <= asked and answered < again_at
        ]
        return max(wrong, default=broken_at) - broken_at

    def falsely_ill(self, since: float, until: float) -> int:
        """Answers other than 200 in a time when tokens flowed."""
        return sum(
            status != 200 for asked, answered, status in self.answers if since <= asked and answered <= until
        )

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=5)
        while not self._ending.wait(self._every_s):
            asked = time.monotonic()
            try:
                connection.request("GET", "/health")
                reply = connection.getresponse()
                reply.read()
                self.answers.append((asked, time.monotonic(), reply.status))
            except (OSError, http.client.HTTPException):  # the coordinator itself is gone
                connection.close()
                self.answers.append((asked, time.monotonic(), 0))
        connection.close()


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    threads: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        process = psutil.Process(pid)
        return cls(process.num_fds(), process.num_threads(), process.memory_info().rss)

    def growth_over(self, before: Footprint) -> str:
        """What is more than before, beyond the noise; empty if nothing is."""
        grown = []
        if self.descriptors > before.descriptors + 2:
            grown.append(f"{before.descriptors} → {self.descriptors} file descriptors")
        if self.threads > before.threads + 2:
            grown.append(f"{before.threads} → {self.threads} threads")
        if self.resident_bytes > before.resident_bytes + 32 * 2**20:
            grown.append(f"{before.resident_bytes >> 20} → {self.resident_bytes >> 20} MiB")
        return ", ".join(grown)
