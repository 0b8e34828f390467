"""The memory of the KV cache on one rank, and what a step needs to find its way in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .huge_pages import huge_tensor
from .native.attention import NativeAttention, native_attention


@dataclass(frozen=True, slots=True)
class StepLayout:
    """One step's batch: the rows of all sequences one after another. All tensors are int32 on CPU."""

    query_start: Tensor  # [S + 1]; the rows of sequence s are query_start[s]:query_start[s + 1]
    context_len: (
        Tensor  # [S]; tokens in the cache AFTER this step's n rows: row j is at context_len[s] - n + j
    )
    block_table: Tensor  # [S, max_blocks]; block ids of each sequence in their order, padded with 0

    def check(self, num_blocks: int, block_size: int) -> None:
        """Whether every index stays inside of a pool of `num_blocks`: kernels don't look.

        Raises:
            ValueError: one doesn't; names the sequence.
        """
        for tensor in (self.query_start, self.context_len, self.block_table):
            if tensor.dtype != torch.int32 or tensor.device.type != "cpu":
                raise ValueError(f"a step's layout is int32 on cpu, not {tensor.dtype} on {tensor.device}")
        sequences, width = self.block_table.shape
        if self.query_start.shape != (sequences + 1,) or self.context_len.shape != (sequences,):
            raise ValueError(
                f"a block table of {sequences} sequences wants query_start [{sequences + 1}] and context_len "
                f"[{sequences}], not {list(self.query_start.shape)} and {list(self.context_len.shape)}"
            )
        counts = self.query_start.diff()
        good = (counts >= 0) & (counts <= self.context_len) & (self.context_len <= width * block_size)
        good &= ((self.block_table >= 0) & (self.block_table < num_blocks)).all(1)
        if self.query_start[0] != 0 or not good.all():
            s = int(good.int().argmin())
            raise ValueError(
                f"sequence {s} of the step: {int(counts[s])} rows, {int(self.context_len[s])} tokens, blocks "
                f"{self.block_table[s].tolist()}, the step's first row {int(self.query_start[0])}; they must "
                f"fit each other, {width} blocks of {block_size} tokens, and a pool of {num_blocks} blocks"
            )


class KVPool:
    """Pages of keys and values of all layers, allocated once.

    `kernel` says who reads them and by that their order:
      - native: `data` [layers, 2, num_blocks, kv_heads, head_dim * block_size]; attention.h has the order
        inside of a page.
      - None (CUDA, no compiler, odd shapes): `data` [layers, 2, num_blocks, block_size, kv_heads, head_dim].

    Nothing relies on what a page held before it was written, so the memory is not cleared; on CPU the
    operating system hands it out as it is used first.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kernel: NativeAttention | Literal["auto"] | None = "auto",
    ) -> None:
        """Allocates.

        Args:
            num_layers: of the model.
            num_blocks: pages per layer.
            num_kv_heads: of this rank.
            head_dim: elements of one key.
            block_size: tokens of a page.
            dtype: of keys and values; the activations have the same.
            device: where the rank computes.
            kernel: "auto" takes the native one where it can work.

        Raises:
            ValueError: a size is not positive, or `kernel` can't work on such pages.
        """
        sizes = (num_layers, num_blocks, num_kv_heads, head_dim, block_size)
        if min(sizes) < 1:
            raise ValueError(f"layers, blocks, kv heads, head_dim, block_size of a pool are {sizes}: below 1")
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.block_size = block_size
        self.dtype = dtype
        self.device = torch.device(device)
        fits = self.device.type == "cpu" and NativeAttention.supports(dtype, head_dim, block_size)
        if kernel == "auto":
            kernel = native_attention() if fits else None
        elif kernel is not None and not fits:
            raise ValueError(
                f"native attention works on cpu in pages of 16 tokens with head_dim 8, 16, ... 256; not on "
                f"{self.device}, pages of {block_size}, {dtype}, head_dim {head_dim}"
            )
        self.kernel = kernel
        shape = (
            (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
            if kernel is None
            else (num_layers, 2, num_blocks, num_kv_heads, head_dim * block_size)
        )
        # In ordinary pages a step would look up nearly as many addresses as it reads pages of keys and values.
        self.data = (
            huge_tensor(shape, dtype)
            if self.device.type == "cpu"
            else torch.empty(shape, dtype=dtype, device=self.device)
        )

    @property
    def attention(self) -> str:
        """What computes attention over these pages: a level of instructions, or torch."""
        return self.kernel.level(self.dtype, self.head_dim).name.lower() if self.kernel else "torch"

    @property
    def bytes(self) -> int:
        """Of the pages of all layers."""
        return self.data.nbytes
