"""The order in which workers are restarted: a pure decision."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .machine import REPOSITORY


def _load() -> ModuleType:
    """The script is no package's: it is installed beside the units."""
    spec = importlib.util.spec_from_file_location(
        "rolling_restart", REPOSITORY / "deploy/systemd/rolling_restart.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


rolling = _load()
UNITS = [rolling.Unit(f"w@{number}.service", 100 + number) for number in range(3)]


def worker(number: int, rank: int | None, **changes: Any) -> dict[str, Any]:
    state, phase = ("standby", "loaded") if rank is None else ("active", "serving")
    return {
        "id": f"a:{number}", "host": "a", "pid": 100 + number, "rank": rank, "state": state, "phase": phase, **changes
    }  # fmt: skip


def step(*workers: dict[str, Any], done: str = "", state: str = "serving", **options: Any) -> Any:
    names = frozenset(f"w@{number}.service" for number in done)
    arguments = {"host": "a", "quiet_s": 0.0, "alone": False, **options}
    return rolling.next_step(UNITS, names, {"state": state, "workers": list(workers)}, **arguments)


def test_the_standby_goes_first_then_the_ranks_from_the_last_to_the_first() -> None:
    assert step(worker(0, 0), worker(1, 1), worker(2, None)).restart == UNITS[2]
    assert step(worker(0, 0), worker(1, 1), worker(2, None), done="2").restart == UNITS[1]
    assert step(worker(0, 0), worker(1, None), worker(2, 1), done="21").restart == UNITS[0]
    assert step(worker(0, None), worker(1, 0), worker(2, 1), done="210") == rolling.Step()


@pytest.mark.parametrize("state", ["recovering", "forming", "loading", "draining"])
def test_nobody_is_restarted_while_the_group_does_not_serve(state: str) -> None:
    waits = step(worker(0, 0), worker(1, 1), worker(2, None), state=state)
    assert waits.restart is None
    assert waits.wait_for == f"the group, which is {state}"


def test_whoever_was_restarted_has_to_be_back_first() -> None:
    assert step(worker(0, 0), worker(1, 1), done="2").wait_for == "w@2.service to join the cluster"
    loading = worker(2, None, state="loading")
    assert step(worker(0, 0), worker(1, 1), loading, done="2").wait_for == "w@2.service to settle"


def test_a_rank_waits_for_a_standby_that_has_loaded_it_unless_that_has_no_room() -> None:
    bare = worker(2, None, phase="waiting")
    assert "a:2 to load" in step(worker(0, 0), worker(1, 1), bare, done="2").wait_for
    settled = step(worker(0, 0), worker(1, 1), bare, done="2", quiet_s=rolling.SETTLED_S)
    assert settled.restart == UNITS[1]


def test_without_a_standby_it_ends_unless_that_is_wanted() -> None:
    elsewhere = worker(2, 2)
    refused = step(worker(0, 0), worker(1, 1), elsewhere)
    assert "no standby can take it" in refused.wrong
    assert step(worker(0, 0), worker(1, 1), elsewhere, alone=True).restart == UNITS[2]


def test_a_worker_that_has_failed_ends_it() -> None:
    failed = worker(2, None, state="failed", phase="its device has failed")
    assert (
        step(worker(0, 0), worker(1, 1), failed).wrong == "w@2.service: a:2 is failed: its device has failed"
    )


def test_the_operator_s_key_is_the_one_that_may_do_operations(tmp_path: Path) -> None:
    keys = tmp_path / "api-keys"
    assert rolling.operator_key(keys) is None
    keys.write_text("# keys\naaaa\nbbbb bob inference\ncccc carol inference,operations\n", encoding="utf-8")
    assert rolling.operator_key(keys) == "cccc"
    keys.write_text("aaaa\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="no key with the role operations"):
        rolling.operator_key(keys)
