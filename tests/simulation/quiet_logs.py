"""The programs' logs during a schedule: nothing is written, and what they call an error is a violation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import structlog

#: Why a request was given up. Whether that was right is looked at when its client hears of it.
_SUSPECT = "the group broke "


@contextlib.contextmanager
def errors_only(on_error: Callable[[str], None]) -> Iterator[None]:
    """Until the end, errors go to `on_error` and the rest nowhere."""

    def tell(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        if not str(event.get("reason", "")).startswith(_SUSPECT):
            on_error(f"logged as an error: {dict(event)}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, tell],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    try:
        yield
    finally:
        structlog.configure(**before)
