"""Whether a device can still be relied on: what it says of itself, asked on a thread of its own.

A GPU is asked through NVML, a CPU through what Linux counts of its memory's errors (EDAC). Neither the engine nor
the heartbeats ever wait for an answer: they read the last one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog
import torch

from ryzanstein.failpoints import failpoint

from .device_reading import DeviceReading

log = structlog.get_logger(__name__)

_INTERVAL_S = 0.5
_EDAC = Path("/sys/devices/system/edac/mc")


class DeviceProbe(Protocol):
    """Asks one device."""

    def read(self) -> DeviceReading:
        """Asks now; may take milliseconds. Whatever it raises means that nothing was learnt."""


class HostMemoryProbe:
    """What Linux counts of uncorrectable errors of the host's memory. Errors from before it was made don't count:
    the memory behind them is out of use since."""

    def __init__(self, root: Path = _EDAC) -> None:
        self._counters = sorted(root.glob("mc*/ue_count"))
        self._before = self._count()

    def read(self) -> DeviceReading:
        errors = self._count() - self._before
        if errors > 0:
            return DeviceReading(failure=f"the host's memory had {errors} uncorrectable errors")
        return DeviceReading()

    def _count(self) -> int:
        total = 0
        for counter in self._counters:
            with contextlib.suppress(OSError, ValueError):  # a counter that can't be read tells nothing
                total += int(counter.read_text())
        return total


def open_probe(device: str) -> DeviceProbe:
    """The best there is for "cpu" or "cuda:N"; on a GPU without NVML the host's memory alone, which the log says."""
    if device == "cpu":
        return HostMemoryProbe()
    from .nvml import NvmlProbe, NvmlUnavailableError

    try:
        return NvmlProbe(str(torch.cuda.get_device_properties(torch.device(device)).uuid))
    except (NvmlUnavailableError, RuntimeError, AssertionError, AttributeError) as error:
        log.warning("device_health_unknown", device=device, reason=str(error))
        return HostMemoryProbe()


class DeviceWatch:
    """Asks the probe twice a second. `reading` may be read from any thread; a failure stays."""

    def __init__(
        self, probe: DeviceProbe, *, on_failure: Callable[[], None], interval_s: float = _INTERVAL_S
    ) -> None:
        """`on_failure` is called once, on the watching thread or within `start`."""
        self._probe = probe
        self._on_failure = on_failure
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-health", daemon=True)
        self._silent = False
        self.reading = DeviceReading()

    def start(self) -> None:
        """Asks once, so that a device that is broken from the start is known, then in the background."""
        self._ask()
        self._thread.start()

    def close(self) -> None:
        """Asks no more."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def fail(self, reason: str) -> None:
        """Somebody else found out, by using it."""
        self._take(DeviceReading(failure=reason))

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._ask()

    def _ask(self) -> None:
        try:
            reading = self._probe.read()
            if failpoint("device.health"):
                reading = replace(reading, failure="failpoint: the device fails")
        except Exception as error:  # noqa: BLE001 - no answer is no failure: whoever computes would notice one
            if not self._silent:  # on change, not every time
                log.warning("device_health_unknown", reason=f"{type(error).__name__}: {error}")
            self._silent = True
            return
        self._silent = False
        self._take(reading)

    def _take(self, reading: DeviceReading) -> None:
        before = self.reading
        self.reading = replace(reading, failure=before.failure or reading.failure)
        if reading.failure and not before.failure:
            log.error("device_failed", reason=reading.failure)
            self._on_failure()
