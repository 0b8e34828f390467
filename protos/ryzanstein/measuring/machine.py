"""The machine that something was measured on, and how quiet it was meanwhile. Linux; elsewhere less is known."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import subprocess
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ryzanstein import __version__

#: Much more than any cache holds.
_PROBE_BYTES = 256 << 20
_PROBE_ROUNDS = 3
#: Two probes that differ by more say that the machine changed its state between them.
_STEADY = 0.15


@dataclass(frozen=True, slots=True)
class Machine:
    """What doesn't change while it is measured."""

    cpu_model: str
    #: Processors that this process may use, and all that there are.
    cores: int
    processors: int
    memory_bytes: int
    gpus: tuple[str, ...]
    system: str
    python: str
    #: None: not installed here.
    torch: str | None
    ryzanstein: str
    #: Of the source tree that this runs from, "+changes" where files differ from it; None: not a git checkout.
    commit: str | None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the processors were over a time: means, in processors."""

    seconds: float
    #: By this process and those that it started; by all others.
    own_cores: float
    other_cores: float


@dataclass(frozen=True, slots=True)
class MachineState:
    """What was measured of the machine, around what was measured on it."""

    machine: Machine
    load: Load
    #: Cores that read memory at once in the probes, and bytes per second of all, before and after.
    probe_cores: int
    read_bytes_per_s_before: float
    read_bytes_per_s_after: float

    @property
    def steady(self) -> bool:
        """Both probes found the same. If not, figures of two moments must not be compared."""
        low, high = sorted((self.read_bytes_per_s_before, self.read_bytes_per_s_after))
        return high <= low * (1 + _STEADY)


class MachineWatch:
    """Begins with a probe of the memory; `state` ends it with another."""

    def __init__(self, cores: int | None = None) -> None:
        """`cores`: that the measured work uses; default: all that this process may use."""
        self._machine = describe_machine()
        self._cores = max(1, min(cores or self._machine.cores, self._machine.cores))
        self._before = read_bandwidth(self._cores)
        self._clock = CpuClock()

    def state(self) -> MachineState:
        """Of the time since the beginning."""
        load = self._clock.load()
        after = read_bandwidth(self._cores)
        return MachineState(self._machine, load, self._cores, self._before, after)


class CpuClock:
    """Processor time of this process's tree and of the whole machine since it was made."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._busy_s, self._own_s = _busy_seconds(), _tree_seconds(os.getpid())

    def load(self) -> Load:
        """Means since the beginning. Processes that ended without having been waited for count as others."""
        seconds = max(time.monotonic() - self._begun_s, 1e-9)
        own = max(0.0, _tree_seconds(os.getpid()) - self._own_s) / seconds
        busy = max(0.0, _busy_seconds() - self._busy_s) / seconds
        return Load(seconds=seconds, own_cores=own, other_cores=max(0.0, busy - own))


def describe_machine() -> Machine:
    """Reads what this machine is."""
    return Machine(
        cpu_model=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        processors=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=_version("torch"),
        ryzanstein=__version__,
        commit=_commit(Path(__file__).parent),
    )


def read_bandwidth(cores: int, *, size_bytes: int = _PROBE_BYTES) -> float:
    """Bytes per second that so many threads read at once, each from memory of its own; the best of three rounds.

    libc's memchr looks for a byte that is not there: it reads with the widest instructions of the processor, and ctypes
    lets go of Python's lock meanwhile.
    """
    libc = ctypes.CDLL(None)
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    libc.memchr.restype = ctypes.c_void_p
    maps = [mmap.mmap(-1, size_bytes) for _ in range(cores)]
    views = [(ctypes.c_char * size_bytes).from_buffer(memory) for memory in maps]
    for view in views:
        ctypes.memset(view, 1, size_bytes)  # pages of its own, not the kernel's one page of zeros
    start = threading.Barrier(cores)
    # Of each round the moments of each thread, taken by itself: another may be let run late.
    moments: list[list[tuple[float, float]]] = [[] for _ in range(_PROBE_ROUNDS)]

    def read(address: int) -> None:
        for of_round in moments:
            start.wait()
            begun_s = time.perf_counter()
            libc.memchr(address, 0, size_bytes)
            of_round.append((begun_s, time.perf_counter()))

    threads = [threading.Thread(target=read, args=(ctypes.addressof(view),)) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [max(end for _, end in each) - min(begin for begin, _ in each) for each in moments]
    views.clear()
    for memory in maps:
        with contextlib.suppress(BufferError):  # a view that is still referred to goes with its memory
            memory.close()
    return cores * size_bytes / min(times)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """As NVIDIA's driver names them; torch would take seconds to say the same."""
    names = []
    with contextlib.suppress(OSError):
        for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            for line in information.read_text(encoding="utf-8").splitlines():
                name, _, value = line.partition(":")
                if name == "Model":
                    names.append(value.strip())
    return tuple(names)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit(directory: Path) -> str | None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).name))  # not some other checkout around it
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _busy_seconds() -> float:
    """Of all processors since the start of the system."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        user, nice, system, _idle, _wait, irq, softirq = map(int, line.split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _tree_seconds(root: int) -> float:
    """Processor time of a process, of those below it, and of the children that they have waited for."""
    spent: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            text = entry.read_text(encoding="utf-8", errors="replace")
            fields = text[text.rindex(")") + 2 :].split()  # the name may hold anything
            spent[int(entry.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    below = {root}
    while more := {pid for pid, (parent, _) in spent.items() if parent in below} - below:
        below |= more
    return sum(ticks for pid, (_, ticks) in spent.items() if pid in below) / os.sysconf("SC_CLK_TCK")
