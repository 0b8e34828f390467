"""`python -m ryzanstein_coordinator`: the coordinator's commands without the other packages'."""

from __future__ import annotations

import sys

import typer

from ryzanstein.program import run

from .main import commands

app = typer.Typer(add_completion=False, no_args_is_help=True)
commands(app)
sys.exit(run(app, name="ryzanstein"))
