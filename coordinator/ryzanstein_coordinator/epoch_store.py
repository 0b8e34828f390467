"""What must survive the coordinator: the highest epoch that may have been announced, who held which rank, how they
computed, and how long their streams may be.

SQLite with a write-ahead log and `synchronous=FULL`: when `commit` returns, the number is on the disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

from .group_record import Member

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epochs (id INTEGER PRIMARY KEY CHECK (id = 1), highest INTEGER NOT NULL);
INSERT OR IGNORE INTO epochs (id, highest) VALUES (1, 0);
CREATE TABLE IF NOT EXISTS members (
    group_id TEXT NOT NULL,
    rank INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    PRIMARY KEY (group_id, rank)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS promises (
    group_id TEXT PRIMARY KEY, max_model_len INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS computing (
    group_id TEXT PRIMARY KEY, instructions TEXT NOT NULL
) WITHOUT ROWID;
"""
_FILE = "coordinator.sqlite3"


class StoreError(Exception):
    """The state directory can't be used; the message says where and what to do."""

    exit_code = 1


class EpochStore:
    """One per coordinator. Methods block for a write to the disk: call them in a thread. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Opens the store, and makes it where there is none.

        Raises:
            StoreError: the directory can't be written, or the file is no store of ours.
        """
        self.path = directory / _FILE
        self._lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(
                self.path, timeout=5.0, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
            self.highest()
        except (OSError, sqlite3.Error) as error:
            if isinstance(getattr(self, "_connection", None), sqlite3.Connection):
                self._connection.close()
            raise StoreError(
                f"{self.path} can't be used: {error}; give another --state-dir, or make it writable for user "
                f"{os.getuid()}"
            ) from error

    def highest(self) -> int:
        """The highest epoch that was committed; 0 in a new store."""
        with self._lock:
            (highest,) = self._connection.execute("SELECT highest FROM epochs").fetchone()
        return int(highest)

    def commit(self, epoch: int) -> int:
        """Makes the epoch durable; an older one changes nothing.

        Returns:
            The highest epoch that is durable now.

        Raises:
            StoreError: it could not be written.
        """
        with self._lock:
            try:
                self._connection.execute("UPDATE epochs SET highest = max(highest, ?)", (epoch,))
                (highest,) = self._connection.execute("SELECT highest FROM epochs").fetchone()
            except sqlite3.Error as error:
                raise StoreError(f"{self.path}: {error}") from error
        return int(highest)

    def remember(
        self,
        group_id: str,
        epoch: int,
        members: tuple[Member, ...],
        max_model_len: int = 0,
        computing: str = "",
    ) -> None:
        """Stores who holds the ranks of a group, instead of who held them before, how they compute
        (`WorkerRecord.computing`), and how many tokens its streams may have.

        Raises:
            StoreError: it could not be written.
        """
        rows = [(group_id, m.rank, epoch, m.worker_id, m.incarnation) for m in members]
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._connection.execute("DELETE FROM members WHERE group_id = ?", (group_id,))
                    self._connection.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?)", rows)
                    self._connection.execute(
                        "INSERT OR REPLACE INTO promises VALUES (?, ?)", (group_id, max_model_len)
                    )
                    self._connection.execute(
                        "INSERT OR REPLACE INTO computing VALUES (?, ?)", (group_id, computing)
                    )
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"{self.path}: {error}") from error

    def members(self) -> dict[str, tuple[str, ...]]:
        """By group: the ids of the workers that held its ranks last, in the order of the ranks."""
        with self._lock:
            rows = self._connection.execute("SELECT group_id, worker_id FROM members ORDER BY group_id, rank")
            held: dict[str, list[str]] = {}
            for group_id, worker_id in rows:
                held.setdefault(group_id, []).append(worker_id)
        return {group_id: tuple(ids) for group_id, ids in held.items()}

    def model_lengths(self) -> dict[str, int]:
        """By group: how many tokens its streams may have; 0: not known."""
        with self._lock:
            return dict(self._connection.execute("SELECT group_id, max_model_len FROM promises"))

    def computing(self) -> str:
        """How the ranks that held groups last computed; all groups compute alike. Empty: not known."""
        with self._lock:
            found = self._connection.execute(
                "SELECT instructions FROM computing WHERE instructions <> '' ORDER BY group_id LIMIT 1"
            ).fetchone()
        return "" if found is None else str(found[0])

    def close(self) -> None:
        """Nothing can be stored any more."""
        with self._lock:
            self._connection.close()
