"""`ryzanstein bench`: a group of commands, to which several packages add theirs."""

from __future__ import annotations

import typer

NAME = "bench"


def bench_commands(app: typer.Typer) -> typer.Typer:
    """The group of this script; made by whoever asks first."""
    for group in app.registered_groups:
        if group.name == NAME and group.typer_instance is not None:
            return group.typer_instance
    bench = typer.Typer(no_args_is_help=True, add_completion=False)
    app.add_typer(
        bench, name=NAME, help="Measure: a cluster that serves, collectives, loading, scaling. See the guide."
    )
    return bench
