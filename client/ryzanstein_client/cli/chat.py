"""`ryzanstein chat`: a conversation in the terminal, or one message per line of standard input."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.program import ConfigFile

from . import options
from .families import with_families
from .options import Connection, Sampling

if TYPE_CHECKING:
    from ryzanstein_client.sync import Client
    from ryzanstein_client.types import Message, SamplingParams


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("chat")(with_families(chat))


def chat(
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation."),
    ] = None,
    *,
    sampling: Sampling,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Talk to the model. Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice, leaves."""
    params = sampling.params()
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with connection.client() as client:
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and the arrow keys
            sys.stderr.write(f"{client.models()[0].name} (Ctrl-D leaves)\n")
        _converse(client, params, history, interactive=interactive)


def _converse(client: Client, sampling: SamplingParams, history: list[Message], *, interactive: bool) -> None:
    from ryzanstein_client.errors import Disconnected, RyzansteinError

    interrupted = False  # the last thing was Ctrl-C: another one leaves
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                sys.stdout.write("\n")
            return
        except UnicodeDecodeError as error:
            raise options.not_text(error) from error
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            if interrupted or not interactive:
                return
            interrupted = True
            sys.stderr.write("(Ctrl-C again, or Ctrl-D, leaves)\n")
            continue
        interrupted = False
        if not line.strip():
            continue
        history.append({"role": "user", "content": line})
        try:
            answer, interrupted = _answer(client, sampling, history)
        except RyzansteinError as error:
            if not interactive or isinstance(error, Disconnected):
                raise
            sys.stderr.write(f"error: {error}\n")  # a message that can't be answered ends no conversation
            answer = ""
        if answer:
            history.append({"role": "assistant", "content": answer})
        else:
            history.pop()  # never answered: the next message must not stand behind another of the user's


def _answer(client: Client, sampling: SamplingParams, history: list[Message]) -> tuple[str, bool]:
    """Streams the answer; returns what came of it, and whether the user stopped it."""
    parts: list[str] = []
    interrupted = False
    try:
        # Leaving the block early cancels the request on the server.
        with client.chat(history, stream=True, sampling=sampling) as stream:
            for chunk in stream:
                parts.append(chunk.text)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        sys.stderr.write(" (stopped)")
    finally:  # what follows, an error too, begins a line of its own
        if parts or interrupted:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return "".join(parts), interrupted
