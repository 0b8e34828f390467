"""What a device says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What a device said. None: it does not tell."""

    #: Why nothing may be computed on it any more; empty while it is well.
    failure: str = ""
    #: Share of the last second or so in which it computed, 0 to 1.
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    #: Uncorrected memory errors since the driver was loaded.
    ecc_errors: int | None = None
