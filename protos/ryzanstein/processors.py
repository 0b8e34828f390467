"""Which of a host's processors each of several workers computes on: NUMA nodes, cores and their hyper-threads."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?\Z")
#: More than any Linux has: a typing mistake is not to make a list of a billion numbers.
_MOST = 1 << 16


@dataclass(frozen=True, slots=True, order=True)
class Processor:
    """What Linux calls a CPU: a hardware thread."""

    number: int
    #: The NUMA node whose memory is near.
    node: int
    #: Equal for the hyper-threads of one core.
    core: tuple[int, int]


def parse_processors(text: str) -> tuple[int, ...]:
    """ "0-3,8" → (0, 1, 2, 3, 8), as Linux writes lists of CPUs. Raises ValueError."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.match(part.strip())
        if match is None:
            raise ValueError(f"{part!r} is neither a number nor a range like 0-15")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _MOST:
            raise ValueError(f"{part!r} is no range of processors")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def format_processors(numbers: Iterable[int]) -> str:
    """And back: (0, 1, 2, 3, 8) → "0-3,8"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_processors(allowed: Collection[int], system: Path = _SYSTEM) -> tuple[Processor, ...]:
    """Those of this host that this process may use, in order. What the system does not tell (some containers hide it)
    is taken to be one node, and a core for each.

    Args:
        allowed: `os.sched_getaffinity(0)`: the mask of the process, and so of its cgroup.
    """
    nodes: dict[int, int] = {}
    for directory in sorted(system.glob("node/node[0-9]*")):
        for number in _list_in(directory / "cpulist"):
            nodes[number] = int(directory.name.removeprefix("node"))
    found = []
    for number in sorted(allowed):
        topology = system / f"cpu/cpu{number}/topology"
        siblings = _list_in(topology / "thread_siblings_list") or (number,)
        package = _list_in(topology / "physical_package_id") or (0,)
        found.append(Processor(number, nodes.get(number, 0), (package[0], siblings[0])))
    return tuple(found)


def share_processors(
    processors: Sequence[Processor], count: int, threads: int
) -> tuple[tuple[int, ...], ...]:
    """A block of `threads` processors of one NUMA node for each of `count` workers; no two share one.

    Nodes get workers in turn, so that memory of all of them is read. A worker gets a core of its own for each thread
    where there are enough for all workers; else hyper-threads, both of a core for the same worker if it has an even
    number of threads.

    Returns:
        By worker; empty: there is no room for all of them.
    """
    nodes: defaultdict[int, defaultdict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for processor in sorted(processors):
        nodes[processor.node][processor.core].append(processor.number)
    cores = {node: [threads_of[0] for threads_of in held.values()] for node, held in nodes.items()}
    siblings = {node: [number for held in nodes[node].values() for number in held] for node in nodes}
    return _deal(cores, count, threads) or _deal(siblings, count, threads)


def _deal(free: dict[int, list[int]], count: int, threads: int) -> tuple[tuple[int, ...], ...]:
    left = {node: list(numbers) for node, numbers in sorted(free.items())}
    blocks: list[tuple[int, ...]] = []
    for _ in range(count):
        node = max(left, key=lambda node: len(left[node]), default=None)  # the first of equal ones
        if node is None or len(left[node]) < threads:
            return ()
        blocks.append(tuple(sorted(left[node][:threads])))
        del left[node][:threads]
    return tuple(blocks)


def _list_in(path: Path) -> tuple[int, ...]:
    """Empty where there is no such file, or nothing in it."""
    try:
        return parse_processors(path.read_text())
    except (OSError, ValueError):
        return ()
