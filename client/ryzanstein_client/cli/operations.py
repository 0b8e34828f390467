"""`ryzanstein status`, `top` and `drain`: looking at the cluster, and taking a worker out of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein.program import ConfigFile

from .families import with_families
from .options import Connection

if TYPE_CHECKING:
    from ryzanstein.terminal import OutputConsole
    from ryzanstein_client.errors import Disconnected
    from ryzanstein_client.sync import Client


def commands(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("status")(with_families(status))
    app.command("top")(with_families(top))
    app.command("drain")(with_families(drain))


def status(
    as_json: Annotated[
        bool, typer.Option("--json", help="The same JSON as /cluster, one line each.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with every change, until Ctrl-C.")] = False,
    *,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Show the cluster: state, epoch, groups, workers, requests, the last recovery."""
    # Ctrl-C is the usual way to leave what goes on for ever.
    leaving = suppress(KeyboardInterrupt) if watch else nullcontext()
    with (
        leaving,
        connection.client() as client,
    ):
        snapshots: Iterable[dict[str, Any]] = client.watch() if watch else [client.cluster()]
        if as_json:
            for cluster in snapshots:
                sys.stdout.write(json.dumps(cluster, ensure_ascii=False) + "\n")
                sys.stdout.flush()
        else:
            _show(snapshots, live=watch)


def top(
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.05, help="Between two looks.")
    ] = 0.5,
    *,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Watch the cluster live, heartbeats and steps included, until Ctrl-C. Without a terminal: a table per look."""
    from ryzanstein.terminal import OutputConsole

    console = OutputConsole()
    with (
        suppress(KeyboardInterrupt),
        connection.client() as client,
    ):
        looks = _polled(client, interval)
        if console.is_terminal:
            _fill_screen(console, looks)
        else:
            _show(looks, live=False)


def drain(
    worker_id: Annotated[str, typer.Argument(metavar="WORKER_ID", help="As `ryzanstein status` names it.")],
    *,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Take a worker out of service without losing a stream; its process ends."""
    with connection.client() as client:
        epoch = client.drain(worker_id)
    sys.stdout.write(f"draining {worker_id}, epoch {epoch}\n")


def _polled(client: Client, interval_s: float) -> Iterator[dict[str, Any] | Disconnected]:
    """Snapshots; once there was one, also what keeps the next from coming."""
    from ryzanstein_client.errors import Disconnected

    yield client.cluster()
    while True:
        time.sleep(interval_s)
        try:
            yield client.cluster()
        except Disconnected as error:
            yield error


def _fill_screen(console: OutputConsole, looks: Iterable[dict[str, Any] | Disconnected]) -> None:
    from rich.live import Live

    from .top_view import TopView

    view = TopView()
    with Live(view, console=console, screen=True, auto_refresh=False) as display:
        for look in looks:
            if isinstance(look, dict):
                view.update(look)
            else:
                view.lost(str(look), time.strftime("%H:%M:%S"))
            display.refresh()


def _show(snapshots: Iterable[dict[str, Any] | Disconnected], *, live: bool) -> None:
    """One table, one that changes in place, or (without a terminal) one after the other."""
    from rich.live import Live

    from ryzanstein.terminal import OutputConsole

    from .cluster_view import render_cluster

    console = OutputConsole()
    views = (render_cluster(cluster) if isinstance(cluster, dict) else str(cluster) for cluster in snapshots)
    if live and console.is_terminal:
        with Live(console=console, auto_refresh=False) as display:
            for view in views:
                display.update(view, refresh=True)
    else:
        for view in views:
            console.print(view)
            console.file.flush()
