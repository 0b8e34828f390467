"""The rows of a step that only decodes, in buffers of a fixed place and size: what a captured graph reads."""

from __future__ import annotations

import torch

from ..batch import Slice
from ..kv_cache import BlockAllocator
from .attention import DecodeRows
from .staging import FixedStaging


class FixedRows:
    """`size` rows with tables of `width` pages. One copy per step brings all of them to the device.

    A row's table is written from where it has grown: it is remembered which list of blocks stands there.
    """

    def __init__(self, size: int, width: int, block_size: int, device: torch.device) -> None:
        self.size = size
        self._block_size = block_size
        self._staging = FixedStaging([size, size, size, size, size * width], device)
        token_ids, positions, slots, context_len, table = self._staging.host
        # numpy's assignment of single elements and lists is several times faster than torch's.
        self._token_ids, self._positions, self._slots = (
            part.numpy() for part in (token_ids, positions, slots)
        )
        self._context_len, self._table = context_len.numpy(), table.view(size, width).numpy()
        self._owners: list[list[int] | None] = [None] * size
        self._written = [0] * size
        self._used = size
        self.host_context_len = context_len
        self.host_table = table.view(size, width)
        self.token_ids = self._staging.device[0]  # [B]
        there = self._staging.device
        self.on_device = DecodeRows(there[1], there[2], there[3], there[4].view(size, width))
        self._leave(0)

    def fill(self, pieces: tuple[Slice, ...]) -> None:
        """Writes the rows of these slices, at most `size`, on the host; those behind them are of no sequence."""
        self._staging.wait()
        block_size = self._block_size
        for row, piece in enumerate(pieces):
            sequence, position = piece.sequence, piece.start
            blocks = sequence.blocks
            if self._owners[row] is not blocks or self._written[row] > len(blocks):
                self._owners[row], self._written[row] = blocks, 0
            written = self._written[row]
            if written < len(blocks):
                self._table[row, written : len(blocks)] = blocks[written:]
                self._written[row] = len(blocks)
            self._token_ids[row] = sequence.tokens[position]
            self._positions[row] = position
            self._slots[row] = blocks[position // block_size] * block_size + position % block_size
            self._context_len[row] = position + 1
        self._leave(len(pieces))

    def send(self) -> None:
        """To the device, without waiting for it."""
        self._staging.send()

    def _leave(self, used: int) -> None:
        """Rows from `used` on decode the first token of the scratch block, whose keys nobody reads."""
        for row in range(used, self._used):
            self._token_ids[row] = self._positions[row] = 0
            self._slots[row] = BlockAllocator.SCRATCH_BLOCK * self._block_size
            self._context_len[row] = 1
            self._table[row, 0] = BlockAllocator.SCRATCH_BLOCK
            self._owners[row], self._written[row] = None, 0
        self._used = used


def pages_of(max_model_len: int, block_size: int) -> int:
    """Width of a table that holds the longest sequence."""
    return -(-max_model_len // block_size)
