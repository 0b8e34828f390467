"""How the ranks of one machine find each other without a coordinator: through a file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import FileStore


class LocalStore(FileStore):
    """torch's store in a file, with what the forming of a group asks of a store besides."""

    def __init__(self, path: Path, world_size: int, *, timeout_s: float) -> None:
        """`path`: seen by these ranks only, of this one group."""
        super().__init__(str(path), world_size)
        self.set_timeout(timedelta(seconds=timeout_s))

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """The values of all keys, in their order, as soon as they are there."""
        return [self.get(key) for key in keys]
