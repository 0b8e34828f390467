"""The end of a process that can't end in order: its engine thread, or its device, may never answer again.

Whoever started it (`serve`, systemd) starts it again: the exit code is a failure's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import NoReturn

import structlog

from ryzanstein.program import EXIT_FAILED

from .device_health import DeviceWatch
from .membership import Membership

log = structlog.get_logger(__name__)

#: For the coordinator to hear of a broken device: then it blames the device, not the process that ended.
_TELL_S = 2.0


def give_up(reason: str) -> NoReturn:
    """Says why in one line, and ends the process at once: no thread is waited for, nothing is freed."""
    log.error("worker_gives_up", reason=reason)
    os._exit(EXIT_FAILED)


async def give_up_with_device(failed: asyncio.Event, watch: DeviceWatch, membership: Membership) -> NoReturn:
    """Waits until the device has failed, tells the coordinator, and gives up.

    No process may use the device as it is, so there is nothing to keep this one for; the next one looks anew.
    """
    await failed.wait()
    membership.changed()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(membership.failure_told.wait(), _TELL_S)
    give_up(f"the device has failed: {watch.reading.failure}")
