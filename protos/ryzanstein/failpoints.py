"""Named places in the programs where a test can make a process fail, to prove that nothing is lost there.

They exist only when the environment names a directory: `RYZANSTEIN_FAILPOINTS=DIR`. A file `POINT@PROCESS` in it
(for example `step.sampled@worker-1`) arms a point; its first line says what happens, and the process that gets
there first takes the file away, so that its replacement lives:

    kill            SIGKILL, to itself
    segfault        SIGSEGV, to itself
    exit            ends at once with status 0, saying nothing
    stop            SIGSTOP, to itself
    sleep 0.5       stands still for so many seconds
    hold 8          takes so many GiB of memory, while it goes on, and keeps them
    memory          torch.OutOfMemoryError, or MemoryError where there is no torch
    error           RuntimeError
    poison          answers True: the caller spoils its own result, where that makes sense

`kill 40` after a blank and a number: the first 40 passes are let through (for `sleep` and `hold`, a second number).
Without the variable, a point costs one comparison.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

_directory = os.environ.get("RYZANSTEIN_FAILPOINTS")
_process = ""
_passes: Counter[str] = Counter()
_held: list[mmap.mmap] = []


def identify(process: str) -> None:
    """Names this process: its worker id, or "coordinator"."""
    global _process  # noqa: PLW0603 - one process has one name
    _process = process


def failpoint(point: str) -> bool:
    """Does what the point was armed for. True: "poison".

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: as armed.
    """
    if _directory is None:
        return False
    armed = Path(_directory) / f"{point}@{_process}"
    try:
        action, *numbers = armed.read_text(encoding="utf-8").split()
    except (FileNotFoundError, ValueError):
        return False
    _passes[point] += 1
    passes = float(numbers.pop()) if len(numbers) > (action in ("sleep", "hold")) else 0.0
    if _passes[point] <= passes:
        return False
    _passes[point] = 0
    try:
        armed.unlink()
    except FileNotFoundError:  # disarmed, or taken by another thread
        return False
    return _act(action, numbers)


def _act(action: str, numbers: list[str]) -> bool:
    signals = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "stop": signal.SIGSTOP}
    if action in signals:
        os.kill(os.getpid(), signals[action])
    elif action == "exit":
        os._exit(0)
    elif action == "sleep":
        time.sleep(float(numbers[0]))
    elif action == "hold":
        threading.Thread(target=_hold, args=(int(float(numbers[0]) * 2**30),), daemon=True).start()
    elif action == "memory":
        torch = sys.modules.get("torch")
        raise (MemoryError if torch is None else torch.OutOfMemoryError)("failpoint: out of memory")
    elif action == "error":
        raise RuntimeError("failpoint: error")
    elif action == "poison":
        return True
    else:
        raise ValueError(f"{action!r} is nothing that a failpoint does")
    return False


def _hold(size_bytes: int) -> None:
    """Touches every page, without the interpreter's lock: a machine may need seconds for a GiB."""
    held = mmap.mmap(-1, size_bytes)
    ctypes.memset((ctypes.c_char * size_bytes).from_buffer(held), 1, size_bytes)
    _held.append(held)
