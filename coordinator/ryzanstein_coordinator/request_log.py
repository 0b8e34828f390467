"""Admitted requests on disk, so that a coordinator that was started again can go on with them.

Only what was asked is kept, never what was generated: whoever comes back brings the tokens that they have,
and the rest is generated again from there. A row is written before the caller is told that the request is
accepted, and removed when the request is forgotten.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import structlog

from ryzanstein.v1.sampling_pb2 import SamplingParams

from .request_store import RetentionLimits
from .requests import RequestKey, RequestSpec

_log = structlog.get_logger()

#: Of the tables below: a file with another one is begun anew.
_SCHEMA_VERSION = 1
_SCHEMA = """
DROP TABLE IF EXISTS model;
DROP TABLE IF EXISTS requests;
CREATE TABLE model (fingerprint TEXT NOT NULL);
CREATE TABLE requests (
    owner TEXT NOT NULL,
    request_id TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt BLOB NOT NULL,           -- token ids, 4 bytes each, little endian
    sampling BLOB NOT NULL,         -- ryzanstein.v1.SamplingParams, every default filled in
    priority INTEGER NOT NULL,
    eos_token_ids TEXT NOT NULL,    -- separated by blanks
    admitted_unix_s REAL NOT NULL,
    deadline_unix_s REAL,
    PRIMARY KEY (owner, request_id)
) WITHOUT ROWID;
"""

#: A request whose time was over no longer ago is restored, so that its caller is told just that. As long as any
#: ended request is kept.
EXPIRED_KEPT_S = RetentionLimits().retain_s

#: The columns of `requests`; None: the row is removed.
_Row = tuple[Any, ...] | None


class RequestLog(Protocol):
    """Where admitted requests are kept. One that can't write says so in the program's log; requests go on."""

    async def admitted(self, spec: RequestSpec, timeout_s: float | None) -> None:
        """Returns when the request would survive the end of this process."""

    def forgotten(self, keys: Sequence[RequestKey]) -> None:
        """These need not be kept any more; soon is soon enough. Call it in the event loop."""


class NoRequestLog:
    """Keeps nothing: after a restart callers are told NOT_FOUND."""

    async def admitted(self, spec: RequestSpec, timeout_s: float | None) -> None: ...
    def forgotten(self, keys: Sequence[RequestKey]) -> None: ...


class SqliteRequestLog:
    """One file, written by a thread of its own; what comes meanwhile shares the next transaction.

    `fingerprint` names the model: requests to another one can't be gone on with.
    """

    def __init__(
        self,
        path: Path,
        *,
        fingerprint: str,
        wall_clock: Callable[[], float] = time.time,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens or creates the file. Raises OSError or sqlite3.Error if that is impossible. `on_failure` is called for
        every later write that failed, on a thread of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._wall_clock = wall_clock
        self._on_failure = on_failure
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="request-log")
        self._pending: dict[RequestKey, _Row] = {}
        self._next_write: asyncio.Task[None] | None = None
        self._database = self._thread.submit(_open, path, fingerprint).result()

    async def admitted(self, spec: RequestSpec, timeout_s: float | None) -> None:
        now = self._wall_clock()
        self._pending[spec.key] = (
            spec.owner,
            spec.request_id,
            spec.model,
            _little_endian(spec.prompt).tobytes(),
            spec.sampling.SerializeToString(),
            spec.priority,
            " ".join(map(str, spec.eos_token_ids)),
            now,
            None if timeout_s is None else now + timeout_s,
        )
        # Shielded: a caller who goes away must not take the others' rows along.
        await asyncio.shield(self._written())

    def forgotten(self, keys: Sequence[RequestKey]) -> None:
        self._pending.update(dict.fromkeys(keys))
        self._written()

    def restore(self) -> list[tuple[RequestSpec, float | None]]:
        """The requests of the former life, oldest first, and the seconds that each has left (None: no
        deadline; not above 0: its time was over while nobody served).

        Call it before anything is admitted. Those whose time has been over for long are gone.
        """
        return self._thread.submit(_read, self._database, self._wall_clock()).result()

    async def close(self) -> None:
        """Writes what is left."""
        await self._written()
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    def _written(self) -> asyncio.Task[None]:
        """Done when all that is pending now is on disk."""
        if self._next_write is None:
            self._next_write = asyncio.create_task(self._write_next(), name="request-log")
        return self._next_write

    async def _write_next(self) -> None:
        # What is added from here on, while the thread writes, begins the next write.
        self._next_write, batch = None, self._pending
        self._pending = {}
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)

    def _write(self, batch: Mapping[RequestKey, _Row]) -> None:
        try:
            with self._database:
                self._database.execute("BEGIN")
                self._database.executemany("DELETE FROM requests WHERE owner = ? AND request_id = ?", batch)
                rows = [row for row in batch.values() if row is not None]
                self._database.executemany("INSERT INTO requests VALUES (?,?,?,?,?,?,?,?,?)", rows)
        except sqlite3.Error as error:
            # The requests are generated all the same; only a restart of the coordinator would lose them.
            self._on_failure()
            _log.error("request_log_failed", path=str(self._path), requests=len(batch), reason=str(error))


def _open(path: Path, fingerprint: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    # NORMAL survives the death of this process, which is what the log is for. A power cut may take the last
    # few requests; their callers are then told NOT_FOUND.
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    if database.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
    if database.execute("SELECT fingerprint FROM model").fetchone() != (fingerprint,):
        database.execute("DELETE FROM model")
        database.execute("DELETE FROM requests")
        database.execute("INSERT INTO model VALUES (?)", (fingerprint,))
    return database


def _read(database: sqlite3.Connection, now: float) -> list[tuple[RequestSpec, float | None]]:
    database.execute("DELETE FROM requests WHERE deadline_unix_s <= ?", (now - EXPIRED_KEPT_S,))
    rows = database.execute("SELECT * FROM requests ORDER BY admitted_unix_s").fetchall()
    return [_restored(row, now) for row in rows]


def _restored(row: tuple[Any, ...], now: float) -> tuple[RequestSpec, float | None]:
    owner, request_id, model, prompt, sampling, priority, eos_token_ids, _, deadline = row
    spec = RequestSpec(
        owner=owner,
        request_id=request_id,
        model=model,
        prompt=_little_endian(array("I", prompt)),
        sampling=SamplingParams.FromString(sampling),
        priority=priority,
        eos_token_ids=tuple(int(token_id) for token_id in eos_token_ids.split()),
    )
    return spec, None if deadline is None else deadline - now


def _little_endian(ids: array[int]) -> array[int]:
    """To or from the byte order of the file."""
    if sys.byteorder == "little":
        return ids
    swapped = ids[:]
    swapped.byteswap()
    return swapped
