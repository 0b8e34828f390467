"""Capturing work of a device once, to launch it again with one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Captured(Protocol):
    """Work that was captured, and the tensor that it fills."""

    output: Tensor

    def replay(self) -> None:
        """Launches it on the current stream, behind what is there."""

    def release(self) -> None:
        """Gives up the graph and with it its hold on a communicator. It is never replayed again."""


class GraphDriver(Protocol):
    """Captures one piece of work after another; all share one pool of memory."""

    def capture(self, run: Callable[[], Tensor]) -> Captured:
        """Runs it to warm up, then captures it. Its inputs must stay where they are."""


class GraphPool:
    """Which pool of memory the next graph goes into: that of the graphs that are alive, or a new one.

    torch frees a pool with the last graph in it. What becomes of a handle after that is not documented, and its
    allocator refuses some that were freed: so it is never used again.
    """

    def __init__(self, new_handle: Callable[[], Any]) -> None:
        self._new_handle = new_handle
        self._handle: Any = None
        self._graphs = 0

    def handle(self) -> Any:
        """For the next capture."""
        if self._graphs == 0:
            self._handle = self._new_handle()
        return self._handle

    def captured(self) -> None:
        """A graph is in the pool of `handle`."""
        self._graphs += 1

    def released(self) -> None:
        """One of those graphs is gone."""
        self._graphs -= 1


class CudaGraphDriver:
    """CUDA graphs of one device. Graphs that share a pool must not run at the same time, and their results last until
    the next one is replayed: so the largest is to be captured first, and the others fit into its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = GraphPool(torch.cuda.graph_pool_handle)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(self, run: Callable[[], Tensor]) -> Captured:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()  # kernels are compiled and libraries choose: that can't be captured
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads ask their events meanwhile, which is no part of what is captured.
        pool = self._pool.handle()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            output = run()
        self._pool.captured()
        return _CudaGraph(graph, output, self._pool)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor, pool: GraphPool) -> None:
        self._graph: torch.cuda.CUDAGraph | None = graph
        self._pool = pool
        self.output = output

    def replay(self) -> None:
        assert self._graph is not None, "the graph was given up"
        self._graph.replay()

    def release(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.reset()
            self._pool.released()


class RepeatingDriver:
    """A device without graphs: a replay runs the work again. So the CPU can go all the way that a GPU goes."""

    def capture(self, run: Callable[[], Tensor]) -> Captured:
        run()
        return _Repeated(run)


class _Repeated:
    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._run: Callable[[], Tensor] | None = run
        self.output = run()

    def replay(self) -> None:
        assert self._run is not None, "the graph was given up"
        self.output.copy_(self._run())

    def release(self) -> None:
        self._run = None


def make_driver(device: torch.device) -> GraphDriver:
    """The device's own."""
    return CudaGraphDriver(device) if device.type == "cuda" else RepeatingDriver()
