"""A directory that appears complete or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ryzanstein_shard_worker.checkpoint.output_directory import OutputError, new_directory


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out"
    with new_directory(target, 10) as partial:
        (partial / "file").write_text("x")
        assert not target.exists()
        assert partial.parent == target.parent  # so that renaming needs no copy
    assert _names(target) == ["file"]
    assert _names(target.parent) == ["out"]


def _fail_within(target: Path, error: BaseException) -> None:
    with new_directory(target, 10) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        raise error


def test_leaves_nothing_behind_after_an_error_or_an_interrupt(tmp_path: Path) -> None:
    for error in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            _fail_within(tmp_path / "out", error)
        assert _names(tmp_path) == []


def test_overwrites_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with new_directory(target, 10) as partial:  # an empty directory may stand there
        (partial / "file").write_text("x")
    for _ in range(2):
        with pytest.raises(OutputError, match="out: exists already; remove it") as error:
            new_directory(target, 10).__enter__()
        assert error.value.exit_code == 2
    assert (target / "file").read_text() == "x"
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match="dangling: exists already"):
        new_directory(tmp_path / "dangling", 10).__enter__()


def test_overwrites_nothing_that_came_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"), new_directory(tmp_path / "out", 10):
        (tmp_path / "out").write_text("mine")
    assert _names(tmp_path) == ["out"]


def test_two_processes_do_not_write_the_same_directory(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out", 10) as partial:
        (partial / "file").write_text("x")
        with pytest.raises(OutputError, match="out: another process is writing it"):
            new_directory(tmp_path / "out", 10).__enter__()
    assert _names(tmp_path / "out") == ["file"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from ryzanstein_shard_worker.checkpoint.output_directory import new_directory\n"
        "with new_directory(Path(sys.argv[1]), 1) as partial:\n"
        "    (partial / 'old').mkdir(); (partial / 'old' / 'file').write_text('x'); (partial / 'rest').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert _names(tmp_path) == [".out.partial"]
    with new_directory(tmp_path / "out", 10) as partial:
        (partial / "new").write_text("x")
    assert _names(tmp_path / "out") == ["new"]


def test_a_disk_that_is_too_small_is_found_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"has \d+ bytes free, 1152921504606846976 are needed; free some"):
        new_directory(tmp_path / "out", 2**60).__enter__()
    assert _names(tmp_path) == []


def test_a_disk_that_becomes_full_is_said_and_cleared(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match="out: the disk is full; 10 bytes are needed, nothing was left behind"
    ):
        _fail_within(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert _names(tmp_path) == []


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"out: can't be written: .*Not a directory"):
        new_directory(tmp_path / "file" / "out", 10).__enter__()
