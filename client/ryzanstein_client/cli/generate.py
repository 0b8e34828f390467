"""`ryzanstein generate`: goes on with a prompt, to the terminal or as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from ryzanstein.program import ConfigFile

from . import options
from .families import with_families
from .options import Connection, Sampling


def commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(with_families(generate))


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to go on with; '-' reads it from stdin.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object with everything that is known about the answer.")
    ] = False,
    *,
    sampling: Sampling,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help="With --json: of each token and its N best rivals.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", metavar="N", help="Higher goes first.", rich_help_panel="Sampling"),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", help="Until the last token.", rich_help_panel="Sampling"
        ),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="ID", help="A name of your own for the request.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="If the server has several.")
    ] = None,
    connection: Connection,
    config: ConfigFile = None,
) -> None:
    """Go on with a text and stream the answer."""
    params = sampling.params(logprobs=logprobs)
    text = _read_stdin() if prompt == "-" else prompt
    with connection.client() as client:
        stream = client.stream(
            text, sampling=params, priority=priority, timeout=timeout, request_id=request_id, model=model
        )
        if as_json:
            completion = stream.collect()
            sys.stdout.write(json.dumps(dataclasses.asdict(completion), ensure_ascii=False) + "\n")
            return
        last = "\n"
        try:
            with stream:
                for chunk in stream:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
                    last = chunk.text[-1:] or last
        finally:  # what follows, an error too, begins a line of its own
            if last != "\n":
                sys.stdout.write("\n")
                sys.stdout.flush()


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise options.not_text(error) from error
