"""What a device says of itself: a library that answers as NVML does, counters as Linux writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ryzanstein import failpoints
from ryzanstein_shard_worker.device_health import DeviceWatch, HostMemoryProbe, open_probe
from ryzanstein_shard_worker.device_reading import DeviceReading
from ryzanstein_shard_worker.nvml import NvmlProbe, NvmlUnavailableError


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Driver:
    """The calls of pynvml, with what they answer. A callable may raise."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_TIMEOUT = 10
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - the names are NVML's

    def __init__(self) -> None:
        self.ecc_errors = 7
        self.rows = (0, 0, 0, 0)
        self.xids: list[int] = []
        self.broken: dict[str, int] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlEventSetCreate": lambda: "events",
            "nvmlDeviceRegisterEvents": lambda device, kinds, events: None,
            "nvmlEventSetWait_v2": self._event,
            "nvmlDeviceGetTotalEccErrors": lambda device, kind, counter: self.ecc_errors,
            "nvmlDeviceGetTemperature": lambda device, sensor: 61,
            "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=40),
            "nvmlDeviceGetRemappedRows": lambda device: self.rows,
        }

        def call(*arguments: Any) -> Any:
            if name in self.broken:
                raise NVMLError(self.broken[name])
            return answers[name](*arguments)

        return call

    def _event(self, events: object, timeout_ms: int) -> SimpleNamespace:
        assert timeout_ms == 0
        if not self.xids:
            raise NVMLError(self.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventData=self.xids.pop(0))


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_a_gpu_that_is_well_tells_its_numbers(driver: Driver) -> None:
    assert NvmlProbe("1234", driver).read() == DeviceReading("", 0.4, 61.0, 7)


def test_errors_of_memory_from_before_the_process_count_for_nothing_and_new_ones_are_a_failure(
    driver: Driver,
) -> None:
    probe = NvmlProbe("GPU-1234", driver)
    driver.ecc_errors = 9
    assert probe.read().failure == "2 uncorrected memory errors"


def test_a_row_that_could_not_be_remapped_is_a_failure(driver: Driver) -> None:
    driver.rows = (1, 1, 0, 1)
    assert "remapped" in NvmlProbe("1234", driver).read().failure


def test_an_error_that_a_program_can_cause_is_no_failure_of_the_device(driver: Driver) -> None:
    probe = NvmlProbe("1234", driver)
    driver.xids = [13, 31, 43]
    assert not probe.read().failure
    driver.xids = [13, 79]
    assert probe.read().failure == "XID 79: it has fallen off the bus"


@pytest.mark.parametrize("error", [Driver.NVML_ERROR_GPU_IS_LOST, Driver.NVML_ERROR_RESET_REQUIRED])
def test_a_device_that_is_lost_has_failed(driver: Driver, error: int) -> None:
    probe = NvmlProbe("1234", driver)
    driver.broken["nvmlDeviceGetTemperature"] = error
    assert probe.read().failure == f"NVML: error {error}"


def test_a_device_that_does_not_tell_is_taken_to_be_well(driver: Driver) -> None:
    for question in ("TotalEccErrors", "Temperature", "UtilizationRates", "RemappedRows"):
        driver.broken[f"nvmlDeviceGet{question}"] = Driver.NVML_ERROR_NOT_SUPPORTED
    driver.broken["nvmlDeviceRegisterEvents"] = Driver.NVML_ERROR_NO_PERMISSION
    assert NvmlProbe("1234", driver).read() == DeviceReading()


def test_a_driver_that_does_not_know_the_device_says_so(driver: Driver) -> None:
    driver.broken["nvmlDeviceGetHandleByUUID"] = 6
    with pytest.raises(NvmlUnavailableError, match="NVML: error 6"):
        NvmlProbe("1234", driver)


def test_the_hosts_memory_fails_with_its_first_new_uncorrectable_error(tmp_path: Path) -> None:
    for controller, errors in (("mc0", 3), ("mc1", 0)):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "ue_count").write_text(f"{errors}\n")
    probe = HostMemoryProbe(tmp_path)
    assert probe.read() == DeviceReading()
    (tmp_path / "mc1" / "ue_count").write_text("2\n")
    assert probe.read().failure == "the host's memory had 2 uncorrectable errors"


def test_a_host_that_counts_nothing_is_taken_to_be_well(tmp_path: Path) -> None:
    assert HostMemoryProbe(tmp_path / "none").read() == DeviceReading()
    assert not open_probe("cpu").read().failure


class Probe:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.answers: list[DeviceReading | Exception] = []

    def read(self) -> DeviceReading:
        answer = self.answers.pop(0) if self.answers else DeviceReading(temperature_celsius=50.0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_failure_stays_and_is_told_once() -> None:
    probe, told = Probe(), []
    probe.answers = [DeviceReading(failure="broken"), DeviceReading(failure="still broken")]
    watch = DeviceWatch(probe, on_failure=lambda: told.append(watch.reading.failure))
    for _ in range(3):
        watch._ask()
    watch.fail("found out by using it")
    assert watch.reading.failure == "broken"
    assert told == ["broken"]


def test_what_was_known_stays_known_while_there_is_no_answer() -> None:
    probe, told = Probe(), []
    probe.answers = [DeviceReading(ecc_errors=1), OSError("no"), OSError("no"), DeviceReading(ecc_errors=2)]
    watch = DeviceWatch(probe, on_failure=lambda: told.append(1))
    readings = []
    for _ in range(4):
        watch._ask()
        readings.append(watch.reading.ecc_errors)
    assert readings == [1, 1, 1, 2]
    assert not told


def test_a_failpoint_makes_it_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_directory", str(tmp_path))
    monkeypatch.setattr(failpoints, "_process", "w0")
    watch = DeviceWatch(Probe(), on_failure=lambda: None, interval_s=0.001)
    watch.start()
    (tmp_path / "device.health@w0").write_text("poison")
    while not watch.reading.failure:
        pass
    watch.close()
