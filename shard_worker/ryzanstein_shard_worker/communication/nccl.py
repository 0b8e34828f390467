"""The group over NCCL: CUDA tensors, without waiting for the device.

A watch notices an operation that does not end, and aborts the communicator. How the ranks come together stands in
`nccl_group`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BroadcastOptions,
    ReduceScatterOptions,
)

from .backend import BackendHandler, non_finite_reason
from .finite import DeviceFlags, first_non_finite
from .launch_watch import DeviceEvent, LaunchWatch
from .sums import ordered_sum

_WATCH_INTERVAL_S = 0.01


class NcclHandler(BackendHandler):
    """Operations over a process group of torch's, launched on the current stream.

    They return when they are launched, not when they are done, and may be captured into a CUDA graph. So a failure
    shows later: in the next operation, or in `check` after the device was waited for. Replays of a graph launch
    nothing here; that they don't end is seen by whoever watches the steps.
    """

    graphs = "bound"

    def __init__(
        self,
        process_group: Any,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        reproducible: bool,
        store: object = None,
    ) -> None:
        """
        Args:
            process_group: torch's, of this epoch alone.
            reproducible: sums in the order of the ranks (an all-gather and a sum), not as NCCL chooses.
            store: what the group was formed over; kept for as long as the group.
        """
        super().__init__(rank=rank, world_size=world_size, backend="nccl", timeout_s=timeout_s)
        self._process_group = process_group
        self._reproducible = reproducible
        self._store = store
        self._flags = DeviceFlags()
        #: [world_size, sums] on the device, of the last step: the largest magnitude of every rank's parts.
        self._magnitudes: Tensor | None = None
        self._watch = LaunchWatch(_record_event, timeout_s=timeout_s)
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch_launches, name="nccl-watch", daemon=True)
        self._watcher.start()

    def capturing(self) -> None:
        self._flags.take()

    def captured(self) -> int:
        own = self._flags.take()
        return 0 if own is None else len(own)

    def replayed(self, mark: int) -> None:
        """The graph has filled the flags of `mark` sums, as the operations that were captured would have."""
        super().replayed(mark)
        self._flags.filled(mark)
        self._watch.launched(self._last, time.monotonic())

    def settle(self) -> None:
        """One small all-gather per step tells every rank of all ranks' parts: the rank that waits for the device, and
        can look, may be another one than that whose part was bad."""
        own = self._flags.take()
        if own is None:
            return
        magnitudes = torch.empty((self.world_size, *own.shape), device=own.device)
        self._all_gather(magnitudes, own)
        self._magnitudes = magnitudes

    def check(self) -> None:
        super().check()
        magnitudes, self._magnitudes = self._magnitudes, None
        if magnitudes is not None:  # the caller has waited for the device
            rank = first_non_finite(magnitudes)
            if rank is not None:
                self._fail(non_finite_reason(rank), rank)

    def _all_reduce(self, tensor: Tensor) -> None:
        self._flags.note(tensor)
        if self._reproducible:
            rows = torch.empty((self.world_size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            self._all_gather(rows, tensor.detach())
            ordered_sum(rows, tensor.detach())
            return
        options = AllreduceOptions()
        options.asyncOp = False  # on the current stream
        self._launch(lambda: self._process_group.allreduce([tensor.detach()], options))

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        options = AllgatherOptions()
        options.asyncOp = False
        self._launch(lambda: self._process_group._allgather_base(out.view(-1), tensor.view(-1), options))

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        self._flags.note(tensor)
        if self._reproducible:
            # [world, world, *S]: every rank's parts. More traffic than needed; no step does this.
            rows = torch.empty((self.world_size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            self._all_gather(rows, tensor)
            ordered_sum(rows[:, self.rank], out)
            return
        options = ReduceScatterOptions()
        options.asyncOp = False
        self._launch(lambda: self._process_group._reduce_scatter_base(out.view(-1), tensor.view(-1), options))

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        options = BroadcastOptions()
        options.rootRank = source
        options.asyncOp = False
        self._launch(lambda: self._process_group.broadcast([tensor.detach()], options))

    def _send(self, tensor: Tensor, to: int) -> None:
        self._launch(lambda: self._process_group.send([tensor], to, 0))

    def _receive(self, tensor: Tensor, source: int) -> None:
        self._launch(lambda: self._process_group.recv([tensor.detach()], source, 0))

    def _barrier(self) -> None:
        """Waits for the device, as a barrier must."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        token = torch.zeros(1, device=device)
        self._launch(lambda: self._process_group.allreduce([token]))
        event = _record_event()
        deadline = time.monotonic() + self.timeout_s
        while event is not None and not self._ended(event):
            self.check()
            if time.monotonic() >= deadline:
                self._give_up(f"the device did not get past it within {self.timeout_s:g} s")
                self.check()
            time.sleep(0.0001)
        self.check()

    def _abort(self, reason: str) -> None:
        self._stop.set()
        group = self._process_group
        if group is None:  # closed already
            return
        # ncclCommAbort waits for every CUDA graph that captured the communicator to be dropped (since NCCL 2.26).
        threading.Thread(target=group.abort, name="nccl-abort", daemon=True).start()

    def _close(self) -> None:
        self._stop.set()
        if self._process_group is None:
            return
        box = [self._process_group, self._store]
        self._process_group = None

        def drop() -> None:
            box[0].abort()
            box.clear()

        threading.Thread(target=drop, name="nccl-reaper", daemon=True).start()

    def _launch(self, start: Callable[[], Any]) -> None:
        try:
            work = start()
            if work is not None:
                work.wait()  # makes the current stream wait, not this thread
        except torch.AcceleratorError as error:
            self._lose_device(error)
        except RuntimeError as error:
            self._fail(str(error).splitlines()[0])
        self._watch.launched(self._last, time.monotonic())

    def _ended(self, event: DeviceEvent) -> bool:
        try:
            return event.query()
        except torch.AcceleratorError as error:
            self._lose_device(error)

    def _lose_device(self, error: torch.AcceleratorError) -> NoReturn:
        """This rank's own device has failed: no peer is to blame, so it is not told as a failure of the group."""
        if self._broken is None:
            self._broken = (f"the device reports: {str(error).splitlines()[0]}", None)
        raise error

    def _watch_launches(self) -> None:
        while not self._stop.wait(_WATCH_INTERVAL_S):
            try:
                last = self._watch.overdue(time.monotonic())
            except RuntimeError as error:
                self._give_up(f"the device reports: {str(error).splitlines()[0]}")
                return
            if last is not None:
                self._give_up(
                    f"the device did not get past {last.operation} #{last.sequence} "
                    f"within {self.timeout_s:g} s: a rank is missing"
                )
                return

    def _give_up(self, reason: str) -> None:
        if self._broken is None:
            self._broken = (reason, None)
        self._abort(reason)


def _record_event() -> DeviceEvent | None:
    """A mark on the current stream; None without CUDA and while a graph is being captured."""
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return None
    event: DeviceEvent = torch.cuda.current_stream().record_event()
    return event
