"""However a measurement ends, what it has is told; what can't be told is found out before."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from ryzanstein.measuring import outputs
from ryzanstein.measuring.flags import choices, number_list
from ryzanstein.measuring.machine import Load, Machine, MachineState, describe_machine, read_bandwidth
from ryzanstein.measuring.outputs import Bench, View, check_files
from ryzanstein.program import ProgramError


@dataclass(frozen=True)
class Result:
    """Of a measurement that is none."""

    seconds: float


def state(before: float, after: float) -> MachineState:
    machine = Machine("a processor", 2, 4, 8 << 30, (), "Linux", "3.11", None, "0.1.0", None)
    return MachineState(machine, Load(1.0, 0.5, 0.25), 2, before, after)


class QuietMachine:
    """Takes no time to look at."""

    def __init__(self, cores: int | None) -> None:
        self.cores = cores

    def state(self) -> MachineState:
        return state(40e9, 41e9)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MachineWatch", QuietMachine)


def table(results: Any) -> list[Table]:
    shown = Table("seconds")
    for result in results:
        shown.add_row(f"{result.seconds}")
    return [shown]


def draw(figure: Any, results: Any) -> None:
    figure.subplots().plot([result.seconds for result in results])


def bench(json_file: Path | None = None, plot_file: Path | None = None) -> Bench[Result]:
    return Bench("nothing", {"ranks": 2}, View(table, draw), json_file=json_file, plot_file=plot_file)


def test_results_are_shown_and_written_with_settings_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench(json_file=tmp_path / "found.json") as running:
        running.add(Result(1.5))
        running.add(Result(2.5))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["complete"] is True
    assert found["results"] == [{"seconds": 1.5}, {"seconds": 2.5}]
    assert found["settings"] == {"ranks": 2}
    assert found["machine"]["machine"]["cpu_model"] == "a processor"
    assert found["machine"]["steady"] is True
    shown = capsys.readouterr().out
    assert "2.5" in shown
    assert "0.2 with other programs" in shown
    assert "40.0 GB/s before, 41.0 GB/s after" in shown


def test_an_interrupted_measurement_tells_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure() -> None:
        with bench(json_file=tmp_path / "found.json") as running:
            running.add(Result(1.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["complete"], found["results"]) == (False, [{"seconds": 1.5}])
    assert "1.5" in capsys.readouterr().out


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_plot_is_drawn(tmp_path: Path, suffix: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"found{suffix}"
    with bench(plot_file=path) as running:
        running.add(Result(1.5))
    assert path.read_bytes().startswith(begins)


def test_files_that_can_not_be_written_are_found_out_before(tmp_path: Path) -> None:
    for files in ((tmp_path / "no" / "x.json", None), (tmp_path, None), (None, tmp_path / "no" / "x.png")):
        with pytest.raises(ProgramError, match="can't be written"):
            bench(*files)
    with pytest.raises(ProgramError, match=r"must end in one of \.png, \.svg, \.pdf"):
        bench(plot_file=tmp_path / "x.jpg")


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(ProgramError, match=r"pip install 'ryzanstein\[bench\]'"):
        check_files(None, tmp_path / "x.png")


def test_a_machine_that_changed_its_pace_is_not_steady() -> None:
    assert state(80e9, 78e9).steady
    assert not state(80e9, 48e9).steady
    assert "measure again" in outputs.machine_lines(state(48e9, 82e9))[-1]


def test_this_machine_is_described_and_its_memory_read() -> None:
    machine = describe_machine()
    assert 1 <= machine.cores <= machine.processors
    assert machine.cpu_model
    assert machine.memory_bytes > 1 << 28
    assert read_bandwidth(1, size_bytes=1 << 20) > 1e7


def test_lists_of_flags() -> None:
    assert number_list("--ranks", "1, 2,8", int) == [1, 2, 8]
    assert number_list("--rate", "0.5", float) == [0.5]
    assert number_list("--rate", "", float) == []
    for text in ("x", "1.5", "0", "-1"):
        with pytest.raises(ProgramError, match="--ranks: "):
            number_list("--ranks", text, int)
    with pytest.raises(ProgramError, match="must be above 0"):
        number_list("--rate", "nan", float)
    assert choices("--backends", "", ["a", "b"]) == ["a", "b"]
    assert choices("--backends", "b", ["a", "b"]) == ["b"]
    with pytest.raises(ProgramError, match="'c' is not known here: choose from a, b"):
        choices("--backends", "a,c", ["a", "b"])
