"""What a heartbeat tells of the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ryzanstein.v1 import cluster_pb2

from .shard_shelf import ShardShelf


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Replaced as a whole, so that a reader never sees half a change."""

    state: cluster_pb2.WorkerState.ValueType = cluster_pb2.WORKER_STATE_STANDBY
    phase: str = "waiting"
    epoch: int = 0
    load_progress: float = 0.0
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    fault: cluster_pb2.Fault | None = None

    def at_rest(self, shelf: ShardShelf) -> EngineStatus:
        """Outside a group, with what it holds."""
        shard = shelf.current
        phase = "waiting" if shard is None else "loaded" if shard.loaded else "waiting for a peer's weights"
        return replace(
            self,
            state=cluster_pb2.WORKER_STATE_STANDBY,
            phase=phase,
            load_progress=float(shard is not None and shard.loaded),
            weights_bytes=shelf.weights_bytes,
            kv_cache_bytes=0 if shard is None else shard.kv_cache_bytes,
        )
