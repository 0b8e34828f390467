"""The shards that a worker holds: one in a group; a spare as many as fit, so that it can take any rank at once."""

from __future__ import annotations

from pathlib import Path

import torch

from ryzanstein.v1 import shard_worker_pb2

from .freed_memory import give_freed_memory_back
from .shard import Progress, Shard, ShardKey, build_shard


class ShardShelf:
    """`current` is the one that was asked for last. Used by the engine thread; others read `current` only."""

    def __init__(self) -> None:
        self._shards: dict[ShardKey, Shard] = {}
        self.current: Shard | None = None

    @property
    def weights_bytes(self) -> int:
        return sum(shard.weights_bytes for shard in list(self._shards.values()))

    def find(self, key: ShardKey) -> Shard | None:
        return self._shards.get(key)

    def load(
        self,
        request: shard_worker_pb2.LoadShardRequest,
        model_dir: Path | None,
        device: torch.device,
        progress: Progress,
    ) -> Shard:
        """The shard that is asked for: what stands here already, or from this host's files, or, without files, still
        without its weights.

        Raises:
            ModelError: the files are not those of the coordinator's model; and whatever `progress` raises.
        """
        key = ShardKey.of(request)
        self._drop_other_models(key)  # before the new one is read, not beside it
        shard = self.find(key)
        if shard is None:
            give_freed_memory_back()
            shard = build_shard(request, model_dir=model_dir, device=device)
            if shard.index is not None:
                shard.read(device, progress)
        self._put(shard, beside=request.beside)
        return shard

    def take(self, key: ShardKey) -> Shard:
        """The shard of this rank, dtype and quantization, which is the only one from here on.

        Raises:
            RuntimeError: it is not here; all stay.
        """
        place = (key.rank, key.tensor_parallel_size)
        fitting = [
            shard
            for shard in self._shards.values()
            if (shard.key.rank, shard.key.tensor_parallel_size) == place and shard.key.is_of_model(key)
        ]
        if not fitting:
            raise RuntimeError(
                f"rank {key.rank} of {key.tensor_parallel_size} has no shard loaded here in {key.dtype}, "
                f"quantization {key.quantization}"
            )
        self.current = self._shards.get(
            key, fitting[-1]
        )  # the same rank may be here for two lengths of context
        self._shards = {self.current.key: self.current}
        return self.current

    def _drop_other_models(self, key: ShardKey) -> None:
        """What a coordinator that served other weights, or these in another form, had loaded here."""
        self._shards = {held: shard for held, shard in self._shards.items() if held.is_of_model(key)}
        if self.current is not None and self.current.key not in self._shards:
            self.current = None

    def _put(self, shard: Shard, *, beside: bool) -> None:
        """One more; it is the current one unless it only stands `beside` that."""
        self._shards[shard.key] = shard
        if not beside or self.current is None:
            self.current = shard
