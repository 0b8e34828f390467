"""Logging as every program does it: events with fields on standard error, JSON when nobody watches.

    context = configure_logging()                 # once, in main
    context.bind(rank=1, epoch=7)                 # what every line of this process carries from now on
    log = structlog.get_logger()
    with request_context(request_id="a1"):        # what lines of this task or thread carry meanwhile
        log.info("admitted", prompt_tokens=12)

Standard output carries results only; nothing here writes to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from .settings import SettingsError

LEVELS = ("debug", "info", "warning", "error", "critical")

#: Chatty below these levels, and never about us.
_QUIET_LIBRARIES = ("asyncio", "grpc", "httpx", "httpcore", "uvicorn", "uvicorn.access", "urllib3")


class LogContext:
    """Fields that every line of the process carries, whichever thread writes it: rank, epoch, worker id.

    A field that a line, task or thread sets itself wins.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)
        self._lock = threading.Lock()

    def bind(self, **fields: Any) -> None:
        """Sets fields; None removes one. Safe from any thread."""
        with self._lock:
            merged = {**self._fields, **fields}
            self._fields = {key: value for key, value in merged.items() if value is not None}

    def add_to(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """The structlog processor."""
        for key, value in self._fields.items():
            event.setdefault(key, value)
        return event


def request_context(**fields: Any) -> AbstractContextManager[None]:
    """Adds fields to the lines that this task or thread writes inside the `with` block."""
    return structlog.contextvars.bound_contextvars(**fields)


class ChangeLog:
    """Logs an event when its fields differ from those logged last under the same key, not on every tick."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._logger = logger
        self._last: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def info(self, event: str, *, key: str = "", **fields: Any) -> bool:
        """True if the line was written. `key` tells apart things of one kind, such as workers."""
        with self._lock:
            if self._last.get((event, key)) == fields:
                return False
            self._last[event, key] = fields
        self._logger.info(event, **fields)
        return True

    def forget(self, key: str) -> None:
        """Frees what is remembered about something that is gone."""
        with self._lock:
            for known in [known for known in self._last if known[1] == key]:
                del self._last[known]


def configure_logging(json: bool | None = None, level: str = "info", **fields: Any) -> LogContext:
    """Sends the logs of this process, structlog's and the standard library's alike, to standard error.

    `json`: one JSON object per line; unset, whenever standard error is no terminal. `fields` are in every
    line. Raises SettingsError for an unknown level.
    """
    if level.lower() not in LEVELS:
        raise SettingsError(f"unknown log level {level!r}; it must be one of {', '.join(LEVELS)}")
    number = logging.getLevelNamesMapping()[level.upper()]
    as_json = json if json is not None else not sys.stderr.isatty()
    context = LogContext(fields)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        context.add_to,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending = _json_ending() if as_json else _text_ending()
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=False,  # a logger made at import must follow a later configuration
    )
    _redirect_standard_library(number, shared, ending)
    return context


class _StandardError:
    """Where lines go. A full disk or a closed pipe costs the line, not what the program was about to do; the
    standard library's handlers hold it the same way."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _json_ending() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _text_ending() -> list[Processor]:
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _redirect_standard_library(number: int, shared: list[Processor], ending: list[Processor]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
