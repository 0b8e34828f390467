"""Waiting for a call into a library that can't be interrupted: in a thread that can be left to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_GLANCE_S = 0.005


def attempt_in_thread(
    attempt: Callable[[], T],
    discard: Callable[[T], None],
    *,
    name: str,
    timeout_s: float,
    cancelled: Callable[[], bool],
) -> T:
    """What `attempt` returns or raises.

    Given up, it runs on to its own end in its thread; what it still brings is handed to `discard`.

    Args:
        name: of the thread.
        cancelled: asked every few milliseconds.

    Raises:
        InterruptedError: `cancelled` said yes.
        TimeoutError: it did not end in time.
    """
    lock = threading.Lock()
    done = threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []
    given_up = False

    def run() -> None:
        try:
            result = attempt()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            # Its frames would keep the library's sockets and threads until the next garbage collection.
            failure.append(error.with_traceback(None))
        else:
            with lock:
                if not given_up:
                    outcome.append(result)
            if not outcome:
                discard(result)
        finally:
            done.set()

    threading.Thread(target=run, name=name, daemon=True).start()
    deadline = time.monotonic() + timeout_s
    while not done.wait(_GLANCE_S):
        late = time.monotonic() >= deadline
        if not late and not cancelled():
            continue
        with lock:
            given_up = not outcome
        if not given_up:
            break
        if late:
            raise TimeoutError(f"{name} did not end within {timeout_s:g} s")
        raise InterruptedError(f"{name} was aborted")
    if failure:
        raise failure[0]
    return outcome[0]
