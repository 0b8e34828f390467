"""`ryzanstein shard`: splits a checkpoint into one file per rank, which loads fastest."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ryzanstein.program import ConfigFile


def register_shard_command(app: typer.Typer) -> None:
    """Adds `shard` to the one script."""
    app.command("shard")(shard)


def shard(
    model_dir: Annotated[
        Path,
        typer.Argument(help="Directory of the checkpoint: Hugging Face's layout, or an already split one."),
    ],
    out_dir: Annotated[Path, typer.Argument(help="Directory to write; it must not exist.")],
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-t", min=1, help="Number of ranks to split for.")
    ],
    config: ConfigFile = None,
) -> None:
    """Split a checkpoint into one file per rank.

    Such a copy loads fastest: every rank reads its own file from front to back. It keeps the configuration
    and the tokenizer, can be served with any other number of ranks too, and can be split again.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from ryzanstein.model_plan import open_checkpoint, read_model_config

    from .saver import CheckpointSaver

    model_config = read_model_config(model_dir)
    saver = CheckpointSaver(open_checkpoint(model_dir), model_config, tensor_parallel_size)
    started_at = time.monotonic()
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        saver.save(out_dir, lambda fraction: bar.update(task, completed=fraction))
    duration_s = time.monotonic() - started_at
    size_mib = saver.needed_bytes / 2**20
    sys.stdout.write(
        f"wrote {out_dir}: {tensor_parallel_size} rank files, {size_mib:,.1f} MiB in {duration_s:.1f} s\n"
    )
