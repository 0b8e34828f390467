"""Fills one rank's parameters from a checkpoint: mapped, only its slices, in file order, with read-ahead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ryzanstein.model_plan import Box, CheckpointIndex, ModelConfig, ModelError, ParameterPlan, module_of

from ..on_demand import is_put_off, provide
from .distributor import Read, WeightDistributor
from .mapped_file import MappedFile
from .parallel_reads import ParallelReads, largest_span
from .read_ahead import ReadAhead, Span
from .transfer import Transfer, check_range, make_transfer

#: Told the loaded fraction, 0 to 1, by bytes.
Progress = Callable[[float], None]

#: Of each thread's buffer: large enough for the bus, small enough that page-locking a dozen takes no time.
_PARALLEL_CHUNK_BYTES = 16 << 20

#: A read that is done or on its way, and what returns when all up to it has arrived.
Moved = tuple[Read, Callable[[], None]]

#: Told "embedding", "layers.3", "norm" or "head" when all its parameters are there.
LayerComplete = Callable[[str], None]


class DistributedCheckpointLoader:
    """Loads the parameters of one rank.

    Args:
        index: of the checkpoint, whole or split for any number of ranks. One that was split for this number
            of ranks loads fastest: the rank reads its own file from front to back and nothing else.
        config: the model's.
        rank, world: this rank and the number of ranks.
        dtype: of the parameters that `allocate` makes.
        device: where the parameters are.
        read_ahead_bytes: how far before the copying the file is asked for.
        chunk_bytes: how much is copied at a time, between two calls of `progress`. None: what suits the device.
        parallel: by several threads. None: to a GPU; a CPU's parameters are filled from the mapping in one pass.

    Raises:
        ModelError: the model can't be split so, or the checkpoint is not of this model.
    """

    def __init__(
        self,
        index: CheckpointIndex,
        config: ModelConfig,
        rank: int,
        world: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        read_ahead_bytes: int = 512 << 20,
        chunk_bytes: int | None = None,
        parallel: bool | None = None,
    ) -> None:
        self._distributor = WeightDistributor(index, config, world)
        self._plans = self._distributor.parameters(rank)  # also checks the rank
        self._padding = self._distributor.padding(rank)
        self._rank = rank
        self._dtype = dtype
        self._device = device
        self._read_ahead_bytes = read_ahead_bytes
        self._parallel = device.type != "cpu" if parallel is None else parallel
        self._chunk_bytes = chunk_bytes or (_PARALLEL_CHUNK_BYTES if self._parallel else 64 << 20)

    def allocate(self) -> dict[str, Tensor]:
        """The rank's parameters by name, uninitialised."""
        return {
            plan.name: torch.empty(plan.shape, dtype=self._dtype, device=self._device) for plan in self._plans
        }

    def load(
        self,
        model: nn.Module,
        progress: Progress | None = None,
        on_layer_complete: LayerComplete | None = None,
    ) -> None:
        """Fills a model whose state dict has the plan's names. Arguments and errors as of `fill`."""
        self._fill(
            planned_parameters(model, [plan.name for plan in self._plans]), progress, on_layer_complete
        )

    def fill(
        self,
        tensors: Mapping[str, Tensor],
        progress: Progress | None = None,
        on_layer_complete: LayerComplete | None = None,
    ) -> None:
        """Fills the rank's tensors in place, each in its own dtype; padding becomes zero.

        Args:
            tensors: one per planned parameter, by name. Memory that was put off comes with its first slice.
            progress: called often, from this thread; what it raises ends the loading.
            on_layer_complete: called once per module, from this thread, when its parameters are complete. The
                loader has let go of them then: the callback may replace and free them, and the peak of memory
                stays at the rank's weights plus one layer.

        Raises:
            ModelError: a tensor is missing or has another shape, a file changed, or a value does not fit into
                float16; names parameter, tensor and file.
        """
        self._fill(dict(tensors), progress, on_layer_complete)

    def _fill(
        self,
        tensors: dict[str, Tensor],  # ours: emptied on the way
        progress: Progress | None,
        on_layer_complete: LayerComplete | None,
    ) -> None:
        check_planned(tensors, self._plans, self._rank, self._distributor.world)
        files = self._distributor.index.files
        reads = self._distributor.reads(self._rank, self._chunk_bytes)
        spans = {id(read): Span(files[read.file].path, *read.span) for read in reads}
        total_bytes = sum(read.needed_bytes for read in reads)
        done_bytes = 0
        modules = _Modules(tensors, reads, self._ready, on_layer_complete)
        move = self._by_threads if self._parallel else self._by_mapping
        with torch.no_grad(), ReadAhead(list(spans.values()), self._read_ahead_bytes) as ahead:
            self._zero_paddings(tensors)
            modules.complete_those_without_reads()
            for read, finish in move(reads, tensors):
                ahead.advance(spans[id(read)])
                if modules.completes(read):
                    finish()
                    modules.complete(module_of(read.parameter))
                done_bytes += read.needed_bytes
                if progress is not None:
                    progress(done_bytes / total_bytes)
            for name in tensors:
                self._ready(tensors, name)

    def _by_mapping(self, reads: list[Read], tensors: dict[str, Tensor]) -> Iterator[Moved]:
        """From the mapped file, one read after the other, in this thread."""
        files = self._distributor.index.files
        transfer = make_transfer(self._device)
        for file, of_file in groupby(reads, key=lambda read: read.file):
            with MappedFile(files[file]) as mapped:
                for read in of_file:
                    _copy(transfer, self._ready(tensors, read.parameter), mapped, read)
                    mapped.release(*read.span)
                    yield read, transfer.finish
        transfer.finish()

    def _by_threads(self, reads: list[Read], tensors: dict[str, Tensor]) -> Iterator[Moved]:
        """Read by several threads, copied by the device's own engine."""
        widest = max((tensor.element_size() for tensor in tensors.values()), default=1)
        pipeline = ParallelReads(
            self._distributor.index.files, self._device, buffer_bytes=largest_span(reads, widest)
        )

        def target(read: Read) -> Callable[[], Tensor]:
            return lambda: self._ready(tensors, read.parameter)[_slices(read.target)]

        with pipeline.open() as moving:
            for read in moving.run([(read, target(read)) for read in reads]):
                yield read, moving.finish
            moving.finish()

    def _ready(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """The parameter, with its memory."""
        tensor = tensors[name]
        if provide(tensor):
            self._zero_padding(name, tensor)
        return tensor

    def _zero_paddings(self, tensors: Mapping[str, Tensor]) -> None:
        """Of those that have their memory already."""
        for name, tensor in tensors.items():
            if not is_put_off(tensor):
                self._zero_padding(name, tensor)

    def _zero_padding(self, name: str, tensor: Tensor) -> None:
        for box in self._padding.get(name, ()):
            tensor[_slices(box)] = 0


class _Modules:
    """Counts what each module still waits for, and lets go of the tensors of one that is complete."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        reads: list[Read],
        ready: Callable[[Mapping[str, Tensor], str], Tensor],
        on_complete: LayerComplete | None,
    ) -> None:
        """`ready`: gives a parameter its memory, if nothing was read into it."""
        self._tensors = tensors
        self._ready = ready
        self._waiting = Counter(module_of(read.parameter) for read in reads)
        self._on_complete = on_complete

    def completes(self, read: Read) -> bool:
        """Counts the read; whether it was its module's last and somebody waits for it."""
        module = module_of(read.parameter)
        self._waiting[module] -= 1
        return self._waiting[module] == 0 and self._on_complete is not None

    def complete(self, module: str) -> None:
        """Forgets the module's tensors and tells the callback."""
        for name in [name for name in self._tensors if module_of(name) == module]:
            self._ready(self._tensors, name)
            del self._tensors[name]
        if self._on_complete is not None:
            self._on_complete(module)

    def complete_those_without_reads(self) -> None:
        """Modules that are padding only on this rank."""
        for module in {module_of(name): None for name in self._tensors}:
            if module not in self._waiting and self._on_complete is not None:
                self.complete(module)


def planned_parameters(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The model's parameters by name.

    A tied parameter may stand in the model under a second name. Raises ModelError for any other parameter
    that the plan does not have: it would stay uninitialised.
    """
    state = dict(model.state_dict(keep_vars=True))
    known = {_memory(state[name]) for name in names if name in state}
    for name in [name for name in state if name not in set(names)]:
        if _memory(state[name]) not in known:
            raise ModelError(f"the model has a parameter {name} that its configuration does not ask for")
        del state[name]
    return state


def _memory(tensor: Tensor) -> int:
    """What tied parameters have in common: where they lie, or, if their memory was put off, that they are one."""
    return id(tensor) if is_put_off(tensor) else tensor.data_ptr()


def check_planned(
    tensors: Mapping[str, Tensor], plans: Sequence[ParameterPlan], rank: int, world: int
) -> None:
    """Raises ModelError, which names the parameter, unless every planned one is there with its shape."""
    for plan in plans:
        if plan.name not in tensors:
            raise ModelError(f"the model has no parameter {plan.name}, which its configuration asks for")
        shape = tuple(tensors[plan.name].shape)
        if shape != plan.shape:
            raise ModelError(
                f"parameter {plan.name}: the model has {list(shape)}, "
                f"rank {rank} of {world} needs {list(plan.shape)}"
            )


def _copy(transfer: Transfer, parameter: Tensor, mapped: MappedFile, read: Read) -> None:
    source = mapped.view(read)
    target = parameter[_slices(read.target)]
    check_range(source, target.dtype, f"{mapped.path}: tensor {read.tensor}")
    transfer.copy(target, source)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)
