"""A GPU's own account of its health, through NVML."""

from __future__ import annotations

from typing import Any

from .device_reading import DeviceReading

#: XID errors after which a GPU is not to be used before it was reset or replaced (NVIDIA's Xid catalogue). Those
#: that a faulty program can cause (13, 31, 43, …) end its process anyway, and are no fault of the device.
FATAL_XIDS = {
    48: "a double-bit memory error",
    62: "its internal controller halted",
    64: "a memory row could not be remapped",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    95: "an uncontained memory error",
    119: "its system processor does not answer",
    120: "its system processor failed",
    140: "an unrecovered memory error",
    143: "it could not be initialised",
}


class NvmlUnavailableError(Exception):
    """The driver's library can't be used, or does not know the device; the message says why."""


class NvmlProbe:
    """Asks one GPU."""

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        """`uuid` as torch tells it, with or without "GPU-"; `nvml`: the module pynvml.

        Raises:
            NvmlUnavailableError: no driver, or no such device (a slice of a GPU has none of its own).
        """
        if nvml is None:
            import pynvml

            nvml = pynvml
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._device = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        except nvml.NVMLError as error:
            raise NvmlUnavailableError(f"NVML: {error}") from error
        self._events = self._register()
        self._ecc_before = self._ecc_errors() or 0

    def read(self) -> DeviceReading:
        """Raises NVMLError when the library fails in a way that says nothing about the device."""
        nvml = self._nvml
        try:
            ecc_errors = self._ecc_errors()
            temperature = self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
            rates = self._ask(nvml.nvmlDeviceGetUtilizationRates)
            failure = self._event() or self._memory_failure(ecc_errors)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                return DeviceReading(failure=f"NVML: {error}")
            raise
        return DeviceReading(
            failure=failure,
            utilization_ratio=None if rates is None else rates.gpu / 100,
            temperature_celsius=None if temperature is None else float(temperature),
            ecc_errors=ecc_errors,
        )

    def _memory_failure(self, ecc_errors: int | None) -> str:
        new = (ecc_errors or 0) - self._ecc_before
        if new > 0:  # what was in that memory is lost, and nobody knows what it was
            return f"{new} uncorrected memory errors"
        rows = self._ask(self._nvml.nvmlDeviceGetRemappedRows)  # (corrected, uncorrected, pending, failed)
        return "a memory row could not be remapped" if rows is not None and rows[3] else ""

    def _event(self) -> str:
        """The first fatal XID that came since the last call; without waiting for one."""
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:
                if error.value == nvml.NVML_ERROR_TIMEOUT:
                    return ""
                raise
            if event.eventData in FATAL_XIDS:
                return f"XID {event.eventData}: {FATAL_XIDS[event.eventData]}"
        return ""

    def _register(self) -> Any:
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._device, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:  # not allowed in every container
            return None
        return events

    def _ecc_errors(self) -> int | None:
        nvml = self._nvml
        errors: int | None = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        return errors

    def _ask(self, question: Any, *arguments: Any) -> Any:
        """None: this device does not tell."""
        nvml = self._nvml
        try:
            return question(self._device, *arguments)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION):
                return None
            raise
