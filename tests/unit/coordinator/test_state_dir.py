"""One coordinator at a time keeps its state in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ryzanstein_coordinator.state_dir import StateError, own


def test_a_second_coordinator_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with own(tmp_path / "state"):
        with pytest.raises(StateError, match=rf"in use by another coordinator \(process {os.getpid()}\)"):
            own(tmp_path / "state").__enter__()
        with own(tmp_path / "other"):
            pass


def test_the_next_one_gets_it_when_the_first_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with own(tmp_path):
            assert (tmp_path / "coordinator.lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"--state-dir .*file/state can't be used"):
        own(tmp_path / "file" / "state").__enter__()
