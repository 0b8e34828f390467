"""Steps that only decode, captured at a few numbers of rows and launched with one call.

A graph that sums over ranks holds the communicator of its epoch: it must never be replayed in another one, and NCCL
waits with an abort until all such graphs are gone. So graphs belong to a group (`enter`, `leave`) unless the rank is
alone. What is captured, and when, follows from what all ranks know: they decide together when they enter, and later
from the steps, which are the same everywhere. A group whose ranks are all new captures before it serves; in one that
goes on after a fault streams wait, so steps are launched one by one first, and a size is captured once it has been
wanted for a while.
"""

from __future__ import annotations

import time
from enum import IntEnum

import structlog
import torch
from torch import Tensor

from ..batch import Batch
from ..communication import CommunicationHandler
from ..kv_pool import KVPool
from ..memory_errors import is_out_of_memory
from ..models import Decoder
from .attention import DecodeAttention, DeviceAttention
from .decode_rows import FixedRows, pages_of
from .graph_driver import Captured, GraphDriver

log = structlog.get_logger(__name__)

#: Steps of one size before it is captured in a group that goes on.
_PATIENCE = 32


class Readiness(IntEnum):
    """What a rank can do when it enters a group; the group does what all can."""

    NEVER = 0
    LATER = 1
    AT_ONCE = 2


class _Size:
    """One number of rows: its buffers, which stay, and its graph, which comes and goes."""

    def __init__(self, rows: FixedRows, attention: DecodeAttention) -> None:
        self.rows = rows
        self.attention = attention
        self.graph: Captured | None = None
        #: What the handler has to be told at each replay.
        self.mark = 0
        self.wanted = 0


class DecodeGraphs:
    """The graphs of one shard over its pages. For the engine thread."""

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        attention: DeviceAttention,
        driver: GraphDriver,
        *,
        sizes: tuple[int, ...],
        max_model_len: int,
        patience: int = _PATIENCE,
    ) -> None:
        """
        Args:
            sizes: numbers of rows; a step is padded to the next one.
            max_model_len: the most tokens of a sequence.
            patience: steps of one size before it is captured in a group that goes on.
        """
        self._model, self._pool, self._driver = model, pool, driver
        self._patience = patience
        self._sizes: dict[int, _Size] = {}
        width = pages_of(max_model_len, pool.block_size)
        for size in sorted(sizes, reverse=True):  # the largest first: the others fit into its memory
            rows = FixedRows(size, width, pool.block_size, pool.device)
            bound = attention.decoding(rows.on_device)
            if bound is None:
                log.info("graphs_off", reason=f"attention by {attention.name} can't be captured")
                self._sizes.clear()
                break
            self._sizes[size] = _Size(rows, bound)
        self._handler: CommunicationHandler | None = None
        self._served = False
        #: Seconds that capturing took, of all sizes since the last `enter`.
        self.capture_s = 0.0

    @property
    def captured(self) -> tuple[int, ...]:
        """The sizes that can be replayed now, largest first."""
        return tuple(size for size, item in self._sizes.items() if item.graph is not None)

    def enter(self, handler: CommunicationHandler) -> None:
        """All ranks of a group call it together, when they are warm. Captures, if it is to be done now.

        Raises:
            CommunicationError: a rank failed on the way.
        """
        self._handler, self.capture_s = handler, 0.0
        ready = Readiness.LATER if self._served else Readiness.AT_ONCE
        if not self._sizes or handler.graphs == "none":
            ready = Readiness.NEVER
        agreed = Readiness(self._least(int(ready)))
        self._served = True
        for item in self._sizes.values():
            item.wanted = 0
        if agreed is Readiness.NEVER:
            self.leave()
            self._handler = None
            return
        if agreed is Readiness.AT_ONCE or handler.graphs == "free":
            for size in list(self._sizes):
                self._capture(size)
        if self.capture_s:
            log.info("graphs_captured", sizes=list(self.captured), seconds=round(self.capture_s, 3))

    def leave(self) -> None:
        """The group is over: before its communicator can go, what holds it has to."""
        handler, self._handler = self._handler, None
        if handler is None or handler.graphs == "free":
            return
        for item in self._sizes.values():
            self._drop(item)

    def release(self) -> None:
        """Gives up everything."""
        self._handler = None
        for item in self._sizes.values():
            self._drop(item)
        self._sizes.clear()

    def run(self, batch: Batch) -> Tensor | None:
        """The logits [R, V] float32 of a step, good until the next; None: it has to be run in another way.

        Waits for nothing on the device.
        """
        count = len(batch.slices)
        if self._handler is None or not all(piece.decodes and not piece.num_scored for piece in batch.slices):
            return None
        size = min((size for size in self._sizes if size >= count), default=None)
        if size is None:
            return None
        item = self._sizes[size]
        if item.graph is None:
            item.wanted += 1
            if item.wanted <= self._patience:
                return None
            self._capture(size)
            if item.graph is None:
                return None
        item.rows.fill(batch.slices)
        item.rows.send()
        item.attention.plan(item.rows.host_context_len, item.rows.host_table)
        item.graph.replay()
        self._handler.replayed(item.mark)
        return item.graph.output[:count]

    @torch.inference_mode()
    def _capture(self, size: int) -> None:
        """One size, on all ranks at the same time.

        Memory that runs out costs a rank that is alone this size. With peers it costs the group, whose other ranks wait
        in a sum by then, and the graphs: in the next epoch this rank wants none.
        """
        item, handler = self._sizes[size], self._handler
        assert handler is not None
        if item.graph is not None:
            return
        started_at = time.monotonic()
        rows = item.rows
        rows.fill(())
        rows.send()
        item.attention.plan(rows.host_context_len, rows.host_table)

        def step() -> Tensor:
            handler.capturing()
            hidden = self._model(rows.token_ids, rows.on_device.positions, item.attention.attend)
            return self._model.logits(hidden)

        try:
            item.graph = self._driver.capture(step)
            item.mark = handler.captured()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log.warning("graph_given_up", size=size, reason=str(error).splitlines()[0])
            if handler.world_size > 1:
                self.release()
                raise
            del self._sizes[size]
        self.capture_s += time.monotonic() - started_at

    def _least(self, number: int) -> int:
        """Of all ranks' numbers."""
        handler = self._handler
        assert handler is not None
        if handler.world_size == 1:
            return number
        mine = torch.tensor([number], dtype=torch.int64, device=self._pool.device)
        return int(handler.all_gather(mine).min())

    def _drop(self, item: _Size) -> None:
        if item.graph is not None:
            item.graph.release()
            item.graph = None
