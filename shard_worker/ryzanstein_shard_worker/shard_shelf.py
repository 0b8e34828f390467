"""The shards that a worker holds: one in a group; a spare as many as fit, so that it can take any rank at once."""

from __future__ import annotations

from .shard import Shard, ShardKey


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

    def put(self, shard: Shard, *, beside: bool) -> None:
        """One more; it is the current one unless it only stands `beside` that."""
        self._shards[shard.key] = shard
        if not beside or self.current is None:
            self.current = shard

    def keep_only(self, key: ShardKey) -> Shard | None:
        """Drops all others; None if it was not there: then nothing is left."""
        self.current = self._shards.get(key)
        self._shards = {} if self.current is None else {key: self.current}
        return self.current
