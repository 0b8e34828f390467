"""Weights over the group's own connections: a host without the checkpoint gets its shard from a peer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ryzanstein.model_plan import (
    CheckpointIndex,
    ModelConfig,
    ModelError,
    ParameterPlan,
    parameters,
    placements,
)

from ..communication import CommunicationError, CommunicationHandler
from ..on_demand import provide
from .distributor import Read, WeightDistributor
from .loader import LayerComplete, Progress, check_planned, planned_parameters
from .mapped_file import MappedFile
from .transfer import check_range


class InitializationError(Exception):
    """The ranks can't hand each other the weights; the message names the rank at fault."""


class DistributedParameterInitializer:
    """Hands parameters from rank to rank. Every rank of the group makes the same calls.

    Large parameters go in parts, and all ranks meet after each part: so no operation waits longer than one
    part takes, and the group's timeout can stay short.

    Args:
        handler: of the group.
        config: the model's.
        dtype: in which the parameters travel: that of the models, and the same on all ranks.
        device: where the group's tensors have to be: the CPU for gloo and shared memory, the GPU for NCCL.
        part_bytes: size of a part.
    """

    def __init__(
        self,
        handler: CommunicationHandler,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        *,
        part_bytes: int = 16 << 20,
    ) -> None:
        self._handler = handler
        self._config = config
        self._dtype = dtype
        self._device = device
        self._part_bytes = part_bytes
        self._plans = parameters(config, handler.rank, handler.world_size)

    def initialize(
        self,
        model: nn.Module | Mapping[str, Tensor] | None,
        source_rank_of: Mapping[int, int],
        index: CheckpointIndex | None = None,
        progress: Progress | None = None,
        on_layer_complete: LayerComplete | None = None,
    ) -> None:
        """Fills the models of some ranks with what they would have loaded from files, bit by bit.

        Args:
            model: of a rank that receives: the module, or its tensors by name. Other ranks need none.
            source_rank_of: for every rank that has no weights, the rank that reads them for it. The same on all
                ranks; empty: nothing is done.
            index: of the checkpoint, on the ranks that are sources.
            progress: told the fraction received, on ranks that receive.
            on_layer_complete: as of `DistributedCheckpointLoader.fill`, on ranks that receive.

        Raises:
            InitializationError: on all ranks alike, before anything is sent, if they don't agree.
            CommunicationError: a rank failed on the way; the reason names the parameter.
            ModelError: on the rank whose checkpoint fails; the group is aborted, so that the others see it.
        """
        if not source_rank_of:
            return
        receivers = sorted(peer for peer, source in source_rank_of.items() if source == self._handler.rank)
        tensors: dict[str, Tensor] = {}
        with ExitStack() as stack:
            senders: dict[int, _Sender] = {}
            problem = self._problem(source_rank_of, receivers, model, index)
            if not problem:
                try:
                    if self._handler.rank in source_rank_of:
                        tensors = self._receiving(model)
                    senders = self._senders(stack, index, receivers)
                except ModelError as error:
                    problem = str(error)
            self._agree(problem, sorted(source_rank_of.items()))
            source = source_rank_of.get(self._handler.rank)
            self._exchange(senders, source, tensors, progress, on_layer_complete)

    def broadcast(self, tensors: Mapping[str, Tensor], source: int) -> None:
        """Copies the tensors of rank `source` into those of every rank, in the order of their names.

        For parameters that all ranks hold whole. Raises InitializationError if names, shapes or dtypes differ
        between ranks, before anything is sent; CommunicationError, whose reason names the parameter.
        """
        self._agree("", [(name, tuple(t.shape), str(t.dtype)) for name, t in sorted(tensors.items())])
        for name in sorted(tensors):
            tensor = tensors[name].detach()
            flat = tensor.reshape(-1)  # a copy if it is not contiguous
            with self._named(name):
                step = max(1, self._part_bytes // flat.element_size())
                for low in range(0, flat.numel(), step):
                    self._handler.broadcast(flat[low : low + step], source)
            if flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))

    def _problem(
        self,
        source_rank_of: Mapping[int, int],
        receivers: list[int],
        model: object,
        index: CheckpointIndex | None,
    ) -> str:
        """Why this rank can't take part; empty if it can."""
        world = self._handler.world_size
        for peer, source in source_rank_of.items():
            if not (0 <= peer < world and 0 <= source < world) or source in source_rank_of:
                return f"rank {source} can't be the source of rank {peer} in a group of {world}"
        if receivers and index is None:
            return f"rank {self._handler.rank} is to send weights to {receivers} but has no checkpoint"
        if self._handler.rank in source_rank_of and model is None:
            return f"rank {self._handler.rank} is to receive weights but has no model"
        return ""

    def _receiving(self, model: nn.Module | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        names = [plan.name for plan in self._plans]
        tensors = planned_parameters(model, names) if isinstance(model, nn.Module) else dict(model or {})
        check_planned(tensors, self._plans, self._handler.rank, self._handler.world_size)
        return tensors

    def _senders(
        self, stack: ExitStack, index: CheckpointIndex | None, receivers: list[int]
    ) -> dict[int, _Sender]:
        if index is None or not receivers:
            return {}
        mapped = [stack.enter_context(MappedFile(file)) for file in index.files]
        distributor = WeightDistributor(index, self._config, self._handler.world_size)
        return {peer: _Sender(distributor, mapped, peer, self._dtype) for peer in receivers}

    def _agree(self, problem: str, what: object) -> None:
        """Raises InitializationError on every rank if one of them has a problem or means something else."""
        described = repr((what, self._dtype, self._part_bytes, self._config)).encode()
        mine = torch.tensor(
            [int(bool(problem)), zlib.crc32(described)], dtype=torch.int64, device=self._device
        )
        every = self._handler.all_gather(mine).tolist()
        if problem:
            raise InitializationError(problem)
        for rank, (failed, checksum) in enumerate(every):
            if failed:
                raise InitializationError(
                    f"rank {rank} can't take part in handing over weights; its log says why"
                )
            if checksum != every[0][1]:
                raise InitializationError(f"rank {rank} and rank 0 were told different things to hand over")

    def _exchange(
        self,
        senders: Mapping[int, _Sender],
        source: int | None,
        tensors: dict[str, Tensor],
        progress: Progress | None,
        on_layer_complete: LayerComplete | None,
    ) -> None:
        total = sum(math.prod(plan.shape) for plan in self._plans)
        done = 0
        for i, plan in enumerate(self._plans):
            with self._named(plan.name), torch.no_grad():
                if source is not None:
                    provide(tensors[plan.name])
                for low, high in self._parts(plan):
                    for peer, sender in senders.items():
                        self._handler.send(sender.part(plan, low, high).to(self._device), peer)
                    if source is not None:
                        self._receive(tensors[plan.name][low:high], source)
                    self._handler.barrier()
            done += math.prod(plan.shape)
            if source is None:
                continue
            del tensors[plan.name]
            if progress is not None:
                progress(done / total)
            if on_layer_complete is not None and _is_last(self._plans, i):
                on_layer_complete(plan.module)

    def _parts(self, plan: ParameterPlan) -> Iterator[tuple[int, int]]:
        """Rows of a parameter, a part at a time: the same on all ranks, because the shapes are."""
        row_bytes = math.prod(plan.shape[1:]) * self._dtype.itemsize
        step = max(1, self._part_bytes // row_bytes)
        for low in range(0, plan.shape[0], step):
            yield low, min(low + step, plan.shape[0])

    def _receive(self, target: Tensor, source: int) -> None:
        if target.dtype == self._dtype and target.device == self._device and target.is_contiguous():
            self._handler.receive(target, source)
            return
        part = torch.empty(target.shape, dtype=self._dtype, device=self._device)
        target.copy_(self._handler.receive(part, source))

    @contextmanager
    def _named(self, parameter: str) -> Iterator[None]:
        """Errors name the parameter, and those of this rank's files reach the others at once."""
        try:
            yield
        except CommunicationError as error:
            raise CommunicationError(
                rank=error.rank,
                peer=error.peer,
                operation=error.operation,
                sequence=error.sequence,
                reason=f"{error.reason} (while parameter {parameter} was handed over)",
            ) from error
        except ModelError as error:
            self._handler.abort(f"parameter {parameter} can't be read: {error}")
            raise


class _Sender:
    """Assembles the parameters of another rank from this rank's files."""

    def __init__(
        self, distributor: WeightDistributor, mapped: list[MappedFile], rank: int, dtype: torch.dtype
    ) -> None:
        self._mapped = mapped
        self._dtype = dtype
        self._reads: dict[str, list[Read]] = {}
        for placement in placements(distributor.config, rank, distributor.world):
            self._reads.setdefault(placement.parameter, []).extend(distributor.reads_of(placement, rank))

    def part(self, plan: ParameterPlan, low: int, high: int) -> Tensor:
        """Rows [low, high) of the parameter, padding included."""
        part = torch.zeros((high - low, *plan.shape[1:]), dtype=self._dtype)
        for whole in self._reads.get(plan.name, ()):
            read = _rows(whole, low, high)
            if read is not None:
                mapped = self._mapped[read.file]
                source = mapped.view(read)
                check_range(source, self._dtype, f"{mapped.path}: tensor {read.tensor}")
                part[tuple(slice(*side) for side in read.target)] = source
                mapped.release(*read.span)
        return part


def _rows(read: Read, low: int, high: int) -> Read | None:
    """What of a read goes into rows [low, high) of the parameter, counted from `low`."""
    (start, stop), *columns = read.target
    first, last = max(start, low), min(stop, high)
    if first >= last:
        return None
    begin = read.source[0][0] + first - start
    return replace(
        read,
        source=((begin, begin + last - first), *read.source[1:]),
        target=((first - low, last - low), *columns),
    )


def _is_last(plans: list[ParameterPlan], i: int) -> bool:
    return i + 1 == len(plans) or plans[i + 1].module != plans[i].module
