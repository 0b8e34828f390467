"""A future that another thread fulfils."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def fulfil(future: Future[T], run: Callable[[], T]) -> None:
    """Hands what `run` gives or raises to whoever waits for the future; does not run it for one that was cancelled.

    Once it runs, the caller's going away (its RPC was cancelled) can't cancel the future under our hands.
    """
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(run())
    except Exception as error:  # noqa: BLE001 - handed to whoever asked
        future.set_exception(error)
