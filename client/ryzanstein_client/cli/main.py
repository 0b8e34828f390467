"""The one console script. Other packages add their commands through entry points of the group below.

An entry point is a callable `commands(app: typer.Typer) -> None`. The commands of this project's own packages are
listed even where their extra is not installed: calling one then says what to install.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from ryzanstein import __version__
from ryzanstein.measuring.group import bench_commands
from ryzanstein.program import EXIT_USAGE, ProgramError, missing_extra, run

from . import bench_scaling, bench_serving, chat, demo, generate, operations

GROUP = "ryzanstein.commands"

#: Where the commands of this project's other packages are, and what they do: pyproject.toml names the same.
KNOWN: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "coordinator": (
        "ryzanstein_coordinator.main:commands",
        {
            "serve": "Run a coordinator and local shard workers for a model.",
            "coordinator": "Run a coordinator alone, as systemd does.",
            "plan": "Show the memory that a model needs on each rank, without any GPU.",
        },
    ),
    "shard-worker": (
        "ryzanstein_shard_worker.main:commands",
        {
            "shard-worker": "Run one shard worker, as systemd does.",
            "shard": "Write a checkpoint with one file per rank.",
            "bench communication": "Measure every collective between processes of this machine.",
            "bench loading": "Load a checkpoint as the workers of a group do it.",
        },
    ),
}


def build_app() -> typer.Typer:
    """All commands: those of the client first."""
    app = typer.Typer(add_completion=False, no_args_is_help=True)
    app.callback()(_global_options)
    for module in (generate, chat, operations, bench_serving, bench_scaling, demo):
        module.commands(app)
    _add_plugins(app)
    return app


def main() -> None:
    """Runs the command that the process's arguments name, and exits."""
    sys.exit(run(build_app()))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ryzanstein {__version__}")
        raise typer.Exit


def _global_options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Serve one large language model split over your GPUs, and go on when any process dies."""


def _add_plugins(app: typer.Typer) -> None:
    found = {point.name: point for point in entry_points(group=GROUP)}
    for name, (value, _) in KNOWN.items():  # a source tree that is not installed has no entry points
        found.setdefault(name, EntryPoint(name=name, value=value, group=GROUP))
    for name, point in found.items():
        try:
            point.load()(app)
        except Exception as error:  # noqa: BLE001 - one broken package must not take the others' commands away
            _, names = KNOWN.get(name, ("", {name: "Not available: its package can't be imported."}))
            for command, summary in names.items():
                group, _, leaf = command.rpartition(" ")
                (bench_commands(app) if group else app).command(
                    leaf,
                    help=summary,
                    add_help_option=False,
                    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
                )(_unavailable(name, error))


def _unavailable(provider: str, error: Exception) -> Callable[[], None]:
    def command() -> None:
        if isinstance(error, ModuleNotFoundError):
            extra = "worker" if provider == "shard-worker" else provider
            raise missing_extra(error) or ProgramError(
                f"this command needs the Python package {error.name!r}, which is not installed: "
                f"pip install 'ryzanstein[{extra}]'",
                exit_code=EXIT_USAGE,
            ) from error
        raise error

    return command


if __name__ == "__main__":
    main()
