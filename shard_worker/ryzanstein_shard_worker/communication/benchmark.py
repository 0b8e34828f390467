"""Latency and bandwidth of every collective, backend and size, between real processes of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ryzanstein.measuring.statistics import Spread, spread

from ..bench.rank_processes import Place, RankProcesses
from ..native.shared_memory import MAX_WORLD_SIZE, shared_memory_available
from .gloo import GlooHandler
from .gloo_group import form_gloo_group
from .handler import CommunicationHandler
from .local_store import LocalStore
from .nccl_group import form_nccl_group, why_no_nccl
from .segment import share_segment
from .shared_memory import SharedGroup, SharedMemoryHandler

BACKENDS = ("shared_memory", "gloo", "nccl")
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send_receive", "barrier")

_TIMEOUT_S = 30.0
_WARM_UP = 3
_BATCHES = 5
_FEWEST, _MOST = 5, 1000  # rounds of a batch


@dataclass(frozen=True, slots=True)
class CollectiveResult:
    """One operation of one size. Bandwidths in bytes per second; None for a barrier, which moves none."""

    backend: str
    operation: str
    ranks: int
    #: As nccl-tests count: what a rank has when all is done, of `all_gather` and `reduce_scatter` all ranks' parts.
    size_bytes: int
    #: Seconds: of each round that of the last rank.
    latency_s: Spread
    algorithm_bytes_per_s: float | None
    bus_bytes_per_s: float | None


class NCCLCommunicationBenchmark:
    """Measures the operations of one backend, which need not be NCCL.

    Every round begins behind a barrier, and takes as long as it takes the rank that ends last: what a step would wait.
    The bandwidths are those of nccl-tests (doc/PERFORMANCE.md there): size by median time, and that times the share of
    the size that has to cross a rank's link.

    Args:
        ranks: processes to measure between; entered.
        backend: one of BACKENDS; ask `why_not` first.
        device: "cpu" or "cuda"; then rank R has the GPU R.
        budget_s: how long each operation and size is repeated.

    Raises:
        ProgramError: the ranks could not form a group, or one failed.
    """

    def __init__(
        self, ranks: RankProcesses, backend: str, *, device: str = "cpu", budget_s: float = 0.2
    ) -> None:
        self._ranks = ranks
        self._backend = backend
        self._budget_s = budget_s
        ranks.call(_form, backend, device)

    def operations(self) -> list[str]:
        """What can be measured: a point-to-point message needs two ranks."""
        return [name for name in OPERATIONS if name != "send_receive" or self._ranks.count > 1]

    def measure(self, operation: str, size_bytes: int) -> CollectiveResult:
        """One operation of one size, rounded up to whole float32 of every rank."""
        world = self._ranks.count
        elements = elements_of(operation, size_bytes, world)
        told = self._ranks.call(_measure, operation, elements, self._budget_s)
        rounds = [max(times) for times in zip(*(times for times in told if times), strict=True)]
        latency = spread(rounds)
        assert latency is not None, "no round was measured"
        size = moved_bytes(operation, elements, world)
        algorithm = None if operation == "barrier" else size / latency.p50
        return CollectiveResult(
            backend=self._backend,
            operation=operation,
            ranks=world,
            size_bytes=size,
            latency_s=latency,
            algorithm_bytes_per_s=algorithm,
            bus_bytes_per_s=None if algorithm is None else algorithm * bus_factor(operation, world),
        )

    def close(self) -> None:
        """Leaves the group; the processes stay."""
        self._ranks.call(_leave)


def why_not(backend: str, ranks: int, device: str) -> str:
    """Why this machine can't have that many ranks over a backend; empty: it can."""
    if backend == "nccl":
        if device != "cuda":
            return "it is for GPUs"
        return why_no_nccl() or _too_few_gpus(ranks)
    if ranks < 2:
        return "it needs two ranks or more"
    if backend == "shared_memory":
        if device != "cpu":
            return "it is for CPUs"
        if ranks > MAX_WORLD_SIZE:
            return f"it holds {MAX_WORLD_SIZE} ranks"
        return "" if shared_memory_available() else "the native library was not built (no C compiler)"
    return _too_few_gpus(ranks) if device == "cuda" else ""


def sizes(smallest: int, largest: int, factor: int) -> Iterator[int]:
    """From the smallest on, each `factor` times the one before, up to the largest."""
    size = smallest
    while size <= largest:
        yield size
        size *= factor


def elements_of(operation: str, size_bytes: int, world: int) -> int:
    """Of float32, in the tensor that one rank hands in."""
    if operation == "barrier":
        return 0
    if operation in ("all_gather", "reduce_scatter"):
        return math.ceil(size_bytes / 4 / world)
    return math.ceil(size_bytes / 4)


def moved_bytes(operation: str, elements: int, world: int) -> int:
    """The size as nccl-tests count it."""
    return 4 * elements * (world if operation in ("all_gather", "reduce_scatter") else 1)


def bus_factor(operation: str, world: int) -> float:
    """nccl-tests, doc/PERFORMANCE.md: bus bandwidth by algorithm bandwidth."""
    if operation == "all_reduce":
        return 2 * (world - 1) / world
    if operation in ("all_gather", "reduce_scatter"):
        return (world - 1) / world
    return 1.0


def rounds_of(budget_s: float, one_s: float) -> int:
    """How often something is measured that takes so long."""
    return max(_FEWEST, min(_MOST, round(budget_s / max(one_s, 1e-9))))


def _too_few_gpus(ranks: int) -> str:
    found = torch.cuda.device_count()
    return "" if ranks <= found else f"{ranks} ranks need a GPU each, and this machine has {found}"


def _form(place: Place, backend: str, device: str) -> None:
    """In a rank's process."""
    attempt = place.kept["attempts"] = place.kept.get("attempts", 0) + 1
    # One file for each group: what a former one left in it would be found again.
    path = place.directory / f"rendezvous-{attempt}"
    store = LocalStore(path, place.world_size, timeout_s=_TIMEOUT_S)
    place.kept["device"] = torch.device("cuda", place.rank) if device == "cuda" else torch.device("cpu")
    place.kept["handler"] = _handler(place, backend, store)


def _handler(place: Place, backend: str, store: LocalStore) -> CommunicationHandler:
    rank, world = place.rank, place.world_size
    if backend == "shared_memory":
        name = f"ryzanstein-bench-{place.directory.name}"
        segment = share_segment(store, rank=rank, world_size=world, name=name, timeout_s=_TIMEOUT_S)
        return SharedMemoryHandler(SharedGroup(segment, rank=rank, world_size=world, timeout_s=_TIMEOUT_S))
    if backend == "gloo":
        group = form_gloo_group(
            store, prefix="gloo", rank=rank, world_size=world, host="127.0.0.1", timeout_s=_TIMEOUT_S
        )
        return GlooHandler(group, timeout_s=_TIMEOUT_S)
    return form_nccl_group(
        store,
        rank=rank,
        world_size=world,
        device=place.kept["device"],
        timeout_s=_TIMEOUT_S,
        reproducible=False,
    )


def _leave(place: Place) -> None:
    place.kept.pop("handler").close()


def _measure(place: Place, operation: str, elements: int, budget_s: float) -> list[float]:
    """Seconds of each round on this rank; of point-to-point messages, half of a round trip, on rank 0 alone."""
    handler: CommunicationHandler = place.kept["handler"]
    device: torch.device = place.kept["device"]
    trip = operation == "send_receive"
    run = _operation(handler, operation, elements, device)

    def one() -> float:
        handler.barrier()
        started_at = time.perf_counter()
        run()
        _wait_for(device)
        return (time.perf_counter() - started_at) / (2 if trip else 1)

    # The ranks' clocks differ: rank 0 says how often, and after every batch whether there is time for another.
    batch = rounds_of(budget_s / _BATCHES, min(one() for _ in range(_WARM_UP)))
    begun_s = time.perf_counter()
    times: list[float] = []
    while rounds := _said_by_first(
        handler, device, batch if not times or time.perf_counter() - begun_s < budget_s else 0
    ):
        times += [one() for _ in range(rounds)]
    handler.settle()
    _wait_for(device)
    handler.check()
    return times if not trip or place.rank == 0 else []


def _said_by_first(handler: CommunicationHandler, device: torch.device, number: int) -> int:
    """The number of rank 0, on all ranks."""
    return int(handler.broadcast(torch.tensor([number], dtype=torch.int64, device=device), 0).item())


def _operation(
    handler: CommunicationHandler, operation: str, elements: int, device: torch.device
) -> Callable[[], object]:
    shape = (handler.world_size, elements) if operation == "reduce_scatter" else (elements,)
    tensor = torch.zeros(shape, dtype=torch.float32, device=device)
    match operation:
        case "all_reduce":
            return lambda: handler.all_reduce(tensor)
        case "all_gather":
            return lambda: handler.all_gather(tensor)
        case "reduce_scatter":
            return lambda: handler.reduce_scatter(tensor)
        case "broadcast":
            return lambda: handler.broadcast(tensor, 0)
        case "send_receive":
            return _round_trip(handler, tensor)
        case "barrier":
            return handler.barrier
    raise ValueError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")


def _round_trip(handler: CommunicationHandler, tensor: Tensor) -> Callable[[], object]:
    """Between ranks 0 and 1; the others have nothing to do."""
    if handler.rank > 1:
        return lambda: None
    other = 1 - handler.rank

    def first() -> None:
        handler.send(tensor, other)
        handler.receive(tensor, other)

    def second() -> None:
        handler.receive(tensor, other)
        handler.send(tensor, other)

    return first if handler.rank == 0 else second


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
