"""What every kind of attention over a GPU's pages offers: one plan for each step, then a call for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kv_pool import KVPool, StepLayout
from ..native.attention import Attend


@dataclass(frozen=True, slots=True)
class ModelAttention:
    """What the model asks of attention, the same in every step."""

    #: Query heads of this rank.
    heads: int
    #: Per layer; see `make_attend`.
    windows: tuple[int | None, ...]
    scale: float
    #: A row's bits must not depend on the other rows of a step.
    reproducible: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's batch, planned on the host. `bind` takes the parts as they are on the device."""

    #: int32 on the CPU.
    parts: list[Tensor]
    bind: Callable[[Sequence[Tensor]], Attend]


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """So many rows that each decode a sequence of their own, in buffers whose place and size stay. Views on the device;
    rows that are not used decode the scratch block's first token."""

    positions: Tensor  # [B]
    slots: Tensor  # [B] where the new keys and values go
    context_len: Tensor  # [B], the new token included
    block_table: Tensor  # [B, W]


class DecodeAttention(Protocol):
    """Attention of `DecodeRows`, to be captured."""

    @property
    def attend(self) -> Attend:
        """What the layers call, inside of what is captured."""

    def plan(self, context_len: Tensor, block_table: Tensor) -> None:
        """Before each replay, with the rows [B] and [B, W] as they are on the host; waits for no step but, at most, for
        the copies of the plan before."""


class DeviceAttention(Protocol):
    """Attention over the pages of one pool."""

    @property
    def name(self) -> str:
        """As the log calls it."""

    def prepare(self, layout: StepLayout) -> Plan:
        """Plans a step's batch, which has passed `layout.check`."""

    def decoding(self, rows: DecodeRows) -> DecodeAttention | None:
        """For graphs; None: this kind can't be captured."""


def token_slots(layout: StepLayout, block_size: int) -> tuple[Tensor, Tensor]:
    """→ of the step's T rows the positions and the token slots of the pool, [T] int32 each."""
    counts = layout.query_start.diff()
    sequences = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), counts)  # [T]
    begins = (layout.context_len - counts - layout.query_start[:-1])[sequences]
    positions = torch.arange(len(sequences), dtype=torch.int32) + begins
    pages = layout.block_table[sequences, positions // block_size]
    return positions, pages * block_size + positions % block_size


def split_pages(pool: KVPool, layer: int) -> tuple[Tensor, Tensor]:
    """A layer's keys and values, [blocks, block_size, kv_heads, d] each."""
    keys, values = pool.data[layer].unbind()
    return keys, values


def dense_rows(tensor: Tensor) -> Tensor:
    """[T, heads, d] whose heads lie together; rows may lie apart."""
    return tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous()
