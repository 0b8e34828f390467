"""`ryzanstein shard` from the command line: one line of result, one line of error, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ryzanstein.model_plan import open_checkpoint
from ryzanstein.program import run
from ryzanstein_shard_worker.checkpoint.command import register_shard_command
from tests.checkpoints import Checkpoints


def shard(*arguments: object) -> int:
    app = typer.Typer()
    register_shard_command(app)
    app.command("other")(lambda: None)  # with one command only, its name would not be asked for
    return run(app, ["shard", *map(str, arguments)])


def test_splits_and_says_what_it_wrote(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert shard(checkpoints("llama"), out, "--tensor-parallel-size", 4) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"wrote {out}: 4 rank files, ")
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    assert open_checkpoint(out).tensor_parallel_size == 4


@pytest.mark.parametrize(
    ("world", "says"),
    [
        ("3", "sizes that work: 1, 2, 4, 8"),
        ("0", "Invalid value for '--tensor-parallel-size'"),
        ("x", "Invalid value for '--tensor-parallel-size'"),
    ],
)
def test_a_number_of_ranks_that_does_not_work_is_bad_usage(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], world: str, says: str
) -> None:
    assert shard(checkpoints("llama"), tmp_path / "out", "--tensor-parallel-size", world) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_existing_output_and_missing_input_are_bad_usage(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert shard(checkpoints("llama"), tmp_path / "file", "-t", 2) == 2
    assert f"{tmp_path / 'file'}: exists already" in capsys.readouterr().err
    assert shard(tmp_path / "nothing", tmp_path / "out", "-t", 2) == 2
    assert "nothing/config.json: no such file" in capsys.readouterr().err


def test_listing_the_command_does_not_import_torch() -> None:
    script = (
        "import sys, typer\n"
        "from ryzanstein_shard_worker.checkpoint.command import register_shard_command\n"
        "register_shard_command(typer.Typer())\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, check=False
        ).returncode
        == 0
    )
