"""Logging as every program does it: events with fields on standard error, JSON when nobody watches.

    context = configure_logging("auto", service="shard-worker")   # once, in main
    context.bind(rank=1, epoch=7)                 # what every line of this process carries from now on
    log = structlog.get_logger()
    with request_context(request_id="a1"):        # what lines of this task or thread carry meanwhile
        log.info("admitted", prompt_tokens=12)

    {"timestamp": "…Z", "level": "info", "event": "admitted", "service": "shard-worker", "rank": 1, "epoch": 7, …}
    06:42:01.482 [info] admitted  service=shard-worker rank=1 epoch=7 request_id=a1 prompt_tokens=12

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

#: "auto" is console on a terminal, json elsewhere.
FORMATS = ("auto", "json", "console")

#: Fields in this order, those of the line itself behind them: who speaks, about which part of the cluster, for whom.
_ORDER = (
    "timestamp",
    "level",
    "event",
    "service",
    "worker",
    "group",
    "rank",
    "epoch",
    "request_id",
    "http_request_id",
)

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


def configure_logging(log_format: str = "auto", level: str = "info", **fields: Any) -> LogContext:
    """Sends the logs of this process, structlog's and the standard library's alike, to standard error.

    `log_format`: one of FORMATS. `fields` are in every line. Raises SettingsError for an unknown format or level.
    """
    if log_format not in FORMATS:
        raise SettingsError(f"--log-format: {log_format!r} is not one of {', '.join(FORMATS)}")
    if level.lower() not in LEVELS:
        raise SettingsError(f"--log-level: {level!r} is not one of {', '.join(LEVELS)}")
    number = logging.getLevelNamesMapping()[level.upper()]
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    context = LogContext(fields)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        context.add_to,
        structlog.processors.add_log_level,
        # A machine sorts lines of several hosts, a person looks at the clock on the wall.
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if as_json
        else structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
    ]
    ending = [_in_order, *(_json_ending() if as_json else _text_ending())]
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


def _in_order(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: event[key] for key in _ORDER if key in event} | dict(event)


def _json_ending() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _text_ending() -> list[Processor]:
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        pad_event_to=18,
        pad_level=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_for_people, renderer]


def _for_people(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Nothing where there is nothing to tell, and milliseconds are enough."""
    shown = {key: value for key, value in event.items() if value is not None}
    shown["timestamp"] = str(shown["timestamp"])[:-3]
    return shown


def _is_no_lost_caller(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


def _redirect_standard_library(number: int, shared: list[Processor], ending: list[Processor]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    # gRPC's core has lines of its own, in its own form, one for each call that is no good: strangers would fill the
    # disk. ERROR is what its package sets when it is imported; who wants the lines asks for INFO or DEBUG.
    if os.environ.get("GRPC_VERBOSITY", "ERROR").upper() == "ERROR":
        os.environ["GRPC_VERBOSITY"] = "NONE"
    # A caller that leaves just when its refusal is written: gRPC has a traceback for it and means no defect.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_lost_caller)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
