"""Where results go: a table, a JSON file, a plot. What was measured is told however the command ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Generic, Self, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ryzanstein.program import EXIT_USAGE, ProgramError, missing_extra
from ryzanstein.terminal import OutputConsole

from .machine import MachineState, MachineWatch

R = TypeVar("R")

PLOT_FORMATS = (".png", ".svg", ".pdf")

#: Options that every command of `ryzanstein bench` has.
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write results, settings and the machine's state as JSON."),
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the results: .png, .svg or .pdf. Needs matplotlib."),
]


@dataclass(frozen=True, slots=True)
class View(Generic[R]):
    """How results of one kind are shown. `draw` gets matplotlib's Figure."""

    tables: Callable[[Sequence[R]], Sequence[RenderableType]]
    draw: Callable[[Any, Sequence[R]], None]


class Bench(Generic[R]):
    """One run of a command: results (dataclasses) are added as they come; at the end they are told.

        with Bench("communication", settings, view, json_file=…, plot_file=…) as bench:
            bench.add(result)

    Also when Ctrl-C or an error ends the block: then the JSON says `"complete": false`.

    Raises:
        ProgramError: a file can't be written, or what draws it is not installed; before anything is measured.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, object],
        view: View[R],
        *,
        json_file: Path | None,
        plot_file: Path | None,
        cores: int | None = None,
    ) -> None:
        """`cores`: that the measured work uses on this machine; default: all."""
        check_files(json_file, plot_file)
        self.results: list[R] = []
        self._name = name
        self._settings = settings
        self._view = view
        self._json_file, self._plot_file = json_file, plot_file
        self._cores = cores

    def __enter__(self) -> Self:
        self._started_at = datetime.now(UTC)
        self._begun_s = time.monotonic()
        self._watch = MachineWatch(self._cores)
        return self

    def add(self, result: R) -> None:
        """One more."""
        self.results.append(result)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._begun_s
        console = OutputConsole()
        if self.results:  # before the last probe of the machine: whoever presses Ctrl-C wants to see them
            for table in self._view.tables(self.results):
                console.print(table)
                console.print()
            console.file.flush()
        state = self._watch.state()
        for line in machine_lines(state) if self.results else ():
            console.print(line, style="dim")
        if self._json_file is not None:
            document = self._document(state, seconds, complete=kind is None)
            _write(self._json_file, json.dumps(document, indent=2, default=str) + "\n")
        if self._plot_file is not None and self.results:
            self._draw(self._plot_file)

    def _document(self, state: MachineState, seconds: float, *, complete: bool) -> dict[str, Any]:
        return {
            "bench": self._name,
            "complete": complete,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "seconds": seconds,
            "settings": dict(self._settings),
            "machine": {**asdict(state), "steady": state.steady},
            "results": [asdict(result) for result in self.results],  # type: ignore[call-overload]
        }

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 8), layout="constrained")
        self._view.draw(figure, self.results)
        try:
            figure.savefig(path, dpi=120)
        except OSError as error:
            raise _not_written(path, error) from error


def machine_lines(state: MachineState) -> list[str]:
    """What a reader has to know before believing the figures."""
    machine, load = state.machine, state.load
    before, after = state.read_bytes_per_s_before / 1e9, state.read_bytes_per_s_after / 1e9
    lines = [
        f"{machine.cpu_model}, {machine.cores} of {machine.processors} processors; meanwhile {load.own_cores:.1f} were "
        f"busy with this and what it started, {load.other_cores:.1f} with other programs",
        f"memory read by {state.probe_cores} threads: {before:.1f} GB/s before, {after:.1f} GB/s after",
    ]
    if not state.steady:
        lines.append("the machine changed its pace meanwhile: measure again before comparing these figures")
    return lines


def check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Finds out before hours of measuring whether the results can be written.

    Raises:
        ProgramError: no.
    """
    for flag, path in (("--json", json_file), ("--plot", plot_file)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ProgramError(
                f"{flag}: {path} can't be written: give a file in a directory that exists",
                exit_code=EXIT_USAGE,
            )
    if plot_file is None:
        return
    if plot_file.suffix.lower() not in PLOT_FORMATS:
        raise ProgramError(
            f"--plot: {plot_file} must end in one of {', '.join(PLOT_FORMATS)}", exit_code=EXIT_USAGE
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None


@contextmanager
def progress_bars(*, disable: bool = False) -> Iterator[Progress]:
    """On standard error, if that is a terminal. Tasks have a field `note`, which says what is under way."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, disable=disable or not console.is_terminal, transient=True
    ) as bars:
        yield bars


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> ProgramError:
    return ProgramError(f"{path} can't be written: {error.strerror or error}")
