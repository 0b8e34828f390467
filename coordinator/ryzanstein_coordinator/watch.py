"""Tells watchers that something changed, without keeping anything for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """Any number of watchers, each as slow as it likes."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()
        self._closed = False

    def notify(self) -> None:
        """Wakes all watchers."""
        self._happened.set()
        self._happened = asyncio.Event()

    def close(self) -> None:
        """Ends all watchers."""
        self._closed = True
        self.notify()

    async def follow(
        self, version: Callable[[], object], read: Callable[[], T], refresh_s: float
    ) -> AsyncIterator[T | None]:
        """What `read` gives now and after every `notify`, until `close`.

        Without a notification it is read again after `refresh_s` if `version` is another one by then; None
        says that it is not. A reader that is busy for a while gets the newest value next.
        """
        seen: object = None
        while not self._closed:
            happened = self._happened
            current = version()
            yield read() if seen is None or current != seen else None
            seen = current
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(refresh_s):
                    await happened.wait()  # set already, if it happened while the reader was busy
