"""How fast the ranks of a group get their weights from a checkpoint, as workers do it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ryzanstein.model_plan import open_checkpoint, read_model_config
from ryzanstein.program import EXIT_USAGE, ProgramError
from ryzanstein.v1 import shard_worker_pb2

from ..checkpoint import WeightDistributor
from ..checkpoint.page_cache import cached_share, drop_pages
from ..shard import DTYPES, build_shard
from .rank_processes import Place, RankProcesses

COLD, WARM = "cold", "warm"
#: In this order: configuration and headers, with the hash that tells checkpoints apart; the modules without weights;
#: the weights, read and packed.
PHASES = ("open", "modules", "weights")


@dataclass(frozen=True, slots=True)
class LoadingResult:
    """One rank in one load."""

    #: COLD: the files' pages were dropped before.
    start: str
    load: int
    rank: int
    ranks: int
    #: How much of the files was in memory when it began; None: the file system doesn't tell.
    cached_share: float | None
    #: Phase → seconds.
    phases_s: dict[str, float]
    seconds: float
    #: That the rank reads from the files, and that its weights take then.
    file_bytes: int
    weights_bytes: int
    #: Of the files, over the time of the phase "weights".
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What each rank loads."""

    model: Path
    device: str
    dtype: str
    quantization: str
    max_model_len: int


def measure(ranks: RankProcesses, work: Work, *, loads: int) -> Iterator[list[LoadingResult]]:
    """So many loads, cold and warm each; → the ranks of one load at a time.

    Raises:
        ProgramError: a rank failed; says why.
    """
    files = [file.path for file in open_checkpoint(work.model).files]
    for load in range(loads):
        for start in (COLD, WARM):
            if start == COLD:
                drop_pages(files)
            yield ranks.call(_load, work, start, load, cached_share(files))


def dtype_of(model: Path, name: str) -> str:
    """What "auto" stands for: the checkpoint's.

    Raises:
        ProgramError: there is no such type. ModelError: config.json can't be used.
    """
    config = read_model_config(model)
    if name != "auto" and name not in DTYPES:
        raise ProgramError(f"--dtype: {name!r} is not one of auto, {', '.join(DTYPES)}", exit_code=EXIT_USAGE)
    return config.dtype if name == "auto" else name


def _load(place: Place, work: Work, start: str, load: int, cached: float | None) -> LoadingResult:
    """In a rank's process."""
    device = torch.device("cuda", place.rank) if work.device == "cuda" else torch.device("cpu")
    begun_s = time.perf_counter()
    index = open_checkpoint(work.model)
    request = shard_worker_pb2.LoadShardRequest(
        model=shard_worker_pb2.ModelSpec(
            path=str(work.model),
            fingerprint=index.fingerprint,
            dtype=work.dtype,
            max_model_len=work.max_model_len,
            quantization=work.quantization,
            reproducible=device.type == "cpu",
        ),
        rank=place.rank,
        tensor_parallel_size=place.world_size,
    )
    opened_s = time.perf_counter()
    shard = build_shard(request, model_dir=work.model, device=device)
    _wait_for(device)
    built_s = time.perf_counter()
    shard.read(device, lambda _: None)
    _wait_for(device)
    ended_s = time.perf_counter()
    distributor = WeightDistributor(index, shard.config, place.world_size)
    file_bytes = sum(read.needed_bytes for read in distributor.reads(place.rank))
    return LoadingResult(
        start=start,
        load=load,
        rank=place.rank,
        ranks=place.world_size,
        cached_share=cached,
        phases_s=dict(zip(PHASES, (opened_s - begun_s, built_s - opened_s, ended_s - built_s), strict=True)),
        seconds=ended_s - begun_s,
        file_bytes=file_bytes,
        weights_bytes=shard.weights_bytes,
        bytes_per_s=file_bytes / (ended_s - built_s),
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
