"""Epochs survive the coordinator and only grow."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.epoch_store import EpochStore, StoreError
from ryzanstein_coordinator.group_record import Member

MEMBERS = (Member(0, "w0", "w0-1"), Member(1, "w1", "w1-1"))


def test_a_new_store_knows_nothing(tmp_path: Path) -> None:
    store = EpochStore(tmp_path / "state")
    assert (store.highest(), store.members()) == (0, {})
    store.close()


def test_what_was_committed_is_there_for_the_next_coordinator(tmp_path: Path) -> None:
    first = EpochStore(tmp_path)
    assert first.commit(3) == 3
    first.remember("g0", 3, MEMBERS)
    second = EpochStore(tmp_path)  # the first was killed: it never closed
    assert second.highest() == 3
    assert second.members() == {"g0": ("w0", "w1")}
    first.close()
    second.close()


@settings(deadline=None, max_examples=20)
@given(epochs=st.lists(st.integers(0, 2**40), max_size=8))
def test_the_highest_epoch_only_grows(tmp_path_factory: pytest.TempPathFactory, epochs: list[int]) -> None:
    store = EpochStore(tmp_path_factory.mktemp("state"))
    for index, epoch in enumerate(epochs):
        assert store.commit(epoch) == max(0, *epochs[: index + 1])
    store.close()


def test_members_of_a_group_replace_those_before(tmp_path: Path) -> None:
    store = EpochStore(tmp_path)
    store.remember("g0", 3, MEMBERS)
    store.remember("g1", 4, MEMBERS[:1])
    store.remember("g0", 5, (Member(0, "w7", "w7-1"),))
    assert store.members() == {"g0": ("w7",), "g1": ("w0",)}
    store.close()


def test_what_streams_were_promised_is_there_for_the_next_coordinator(tmp_path: Path) -> None:
    first = EpochStore(tmp_path)
    assert first.model_lengths() == {}
    first.remember("g0", 3, MEMBERS, 4096)
    first.remember("g0", 4, MEMBERS[:1], 2048)
    first.remember("g1", 5, MEMBERS)
    first.close()
    second = EpochStore(tmp_path)
    assert second.model_lengths() == {"g0": 2048, "g1": 0}
    second.close()


def test_how_the_ranks_computed_is_there_for_the_next_coordinator(tmp_path: Path) -> None:
    first = EpochStore(tmp_path)
    assert first.computing() == ""
    first.remember("g0", 3, MEMBERS, 4096, "AVX512, AMX, --cpu-threads 1")
    first.close()
    second = EpochStore(tmp_path)
    assert second.computing() == "AVX512, AMX, --cpu-threads 1"
    second.remember("g0", 4, MEMBERS, 4096, "AVX512, --cpu-threads 1")
    assert second.computing() == "AVX512, --cpu-threads 1"
    second.close()


def test_commits_are_written_through_to_the_disk(tmp_path: Path) -> None:
    store = EpochStore(tmp_path)
    connection = store._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_several_threads_may_write(tmp_path: Path) -> None:
    store = EpochStore(tmp_path)
    threads = [threading.Thread(target=store.commit, args=(n,)) for n in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.highest() == 20
    store.close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match=r"file/coordinator\.sqlite3.*--state-dir"):
        EpochStore(tmp_path / "file")


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coordinator.sqlite3").write_bytes(b"something else entirely, and long enough" * 100)
    with pytest.raises(StoreError, match="not a database"):
        EpochStore(tmp_path)


def test_a_write_that_fails_says_where(tmp_path: Path) -> None:
    store = EpochStore(tmp_path)
    blocker = sqlite3.connect(store.path, isolation_level=None)
    store._connection.execute("PRAGMA busy_timeout = 0")
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"coordinator\.sqlite3: database is locked"):
        store.commit(1)
    with pytest.raises(StoreError, match="locked"):
        store.remember("g0", 1, MEMBERS)
    blocker.execute("ROLLBACK")
    assert store.commit(1) == 1
    blocker.close()
    store.close()
