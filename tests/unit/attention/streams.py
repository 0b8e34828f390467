"""Sequences that pass through the pages of a pool in any splits, and what plain arithmetic makes of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ryzanstein_shard_worker.native.attention import NativeAttention
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend


@dataclass(frozen=True, slots=True)
class Shape:
    """What all sequences of a model share."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    window: int | None = None

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


@dataclass(frozen=True, slots=True)
class Stream:
    """One sequence's queries [n, heads, d], keys and values [n, kv_heads, d]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def random(cls, length: int, shape: Shape, seed: int) -> Stream:
        # One wide row per token, as a fused projection gives it: q, k and v are views with gaps between rows.
        generator = torch.Generator().manual_seed(seed)
        heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        rows = torch.randn(length, sum(heads), shape.head_dim, generator=generator).to(shape.dtype)
        return cls(*torch.split(rows, heads, dim=1))

    def __len__(self) -> int:
        return len(self.q)


class Cache:
    """A pool of pages with the streams that are being written to it, as far as they have come."""

    def __init__(
        self,
        shape: Shape,
        streams: list[Stream],
        *,
        kernel: NativeAttention | None,
        garbage: float = 0.0,
        threads: int = 1,
        shuffle: random.Random | None = None,
    ) -> None:
        self._shape = shape
        self._streams = streams
        self._threads = threads
        self._done = [0] * len(streams)
        counts = [-(-len(stream) // 16) for stream in streams]
        blocks = list(range(1, sum(counts) + 1))
        if shuffle:
            shuffle.shuffle(blocks)
        taken = iter(blocks)
        self._tables = [list(itertools.islice(taken, count)) for count in counts]
        self.pool = KVPool(
            1, len(blocks) + 1, shape.kv_heads, shape.head_dim, dtype=shape.dtype, kernel=kernel
        )
        self.pool.data.fill_(garbage)

    def step(self, counts: list[int]) -> list[Tensor]:
        """The next `counts[s]` tokens of every stream at once; their attention [counts[s], heads, d]."""
        pieces = [
            (stream, table, done, count)
            for stream, table, done, count in zip(
                self._streams, self._tables, self._done, counts, strict=True
            )
        ]
        width = max(len(table) for table in self._tables)
        layout = StepLayout(
            query_start=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
            context_len=torch.tensor([done + count for _, _, done, count in pieces], dtype=torch.int32),
            block_table=torch.tensor(
                [table + [0] * (width - len(table)) for table in self._tables], dtype=torch.int32
            ),
        )
        shape = self._shape
        attend = make_attend(
            self.pool, layout, sliding_window=(shape.window,), scale=shape.scale, threads=self._threads
        )
        if len(pieces) == 1:
            stream, _, done, count = pieces[0]
            rows = tuple(tensor[done : done + count] for tensor in (stream.q, stream.k, stream.v))
        else:
            rows = tuple(
                torch.cat([tensor[done : done + count] for tensor, done, count in parts])
                for parts in (
                    [(stream.q, done, count) for stream, _, done, count in pieces],
                    [(stream.k, done, count) for stream, _, done, count in pieces],
                    [(stream.v, done, count) for stream, _, done, count in pieces],
                )
            )
        self._done = [done + count for _, _, done, count in pieces]
        return list(torch.split(attend(0, *rows), counts))

    def run(self, steps: Iterable[list[int]]) -> list[Tensor]:
        """All steps one after another; each stream's attention [n, heads, d]."""
        outputs: list[list[Tensor]] = [[] for _ in self._streams]
        for counts in steps:
            for output, got in zip(outputs, self.step(counts), strict=True):
                output.append(got)
        return [torch.cat(output) for output in outputs]


def token_by_token(shape: Shape, stream: Stream, kernel: NativeAttention | None) -> Tensor:
    """[n, heads, d] of a stream that is alone in a clean cache and decodes every token by itself."""
    return Cache(shape, [stream], kernel=kernel).run([[1]] * len(stream))[0]


def plain_attention(shape: Shape, stream: Stream) -> Tensor:
    """[n, heads, d] float64: the definition, with every score of the sequence in memory."""
    group = shape.heads // shape.kv_heads
    q = stream.q.double().transpose(0, 1)  # [heads, n, d]
    k = stream.k.double().transpose(0, 1).repeat_interleave(group, 0)  # [heads, n, d]
    v = stream.v.double().transpose(0, 1).repeat_interleave(group, 0)
    position = torch.arange(len(stream))
    seen = position <= position[:, None]  # [query, key]
    if shape.window is not None:
        seen &= position > position[:, None] - shape.window
    scores = (q @ k.transpose(1, 2) * shape.scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal as bit patterns: the sign of zero counts, and NaN equals itself."""
    integer = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))
