"""Attention over pages on CUDA is the definition of attention, in any mix of prefill, chunks and decoding."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend
from tests.unit.attention.streams import Shape, Stream, plain_attention

BLOCK = 16
#: Largest difference from float64 for values of about one.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

SHAPES = [
    Shape(heads=8, kv_heads=2, head_dim=64),
    Shape(heads=4, kv_heads=4, head_dim=128),
    Shape(heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16),
    Shape(heads=8, kv_heads=1, head_dim=64, dtype=torch.float16),
    Shape(heads=8, kv_heads=2, head_dim=64, window=21),
    Shape(heads=8, kv_heads=2, head_dim=16, dtype=torch.bfloat16, window=5),
]


class CudaCache:
    """Pages on the device, in an order of blocks that says nothing, filled with NaN before they are written."""

    def __init__(self, device: torch.device, shape: Shape, streams: list[Stream]) -> None:
        self._shape, self._streams = shape, streams
        self._done = [0] * len(streams)
        counts = [-(-len(stream) // BLOCK) for stream in streams]
        blocks = list(range(1, sum(counts) + 1))
        random.Random(4).shuffle(blocks)
        taken = iter(blocks)
        self._tables = [list(itertools.islice(taken, count)) for count in counts]
        self._pool = KVPool(
            1, len(blocks) + 1, shape.kv_heads, shape.head_dim, dtype=shape.dtype, device=device
        )
        self._pool.data.fill_(float("nan"))

    def step(self, counts: list[int]) -> list[Tensor]:
        """The next `counts[s]` tokens of every stream at once → attention [counts[s], heads, d] on the CPU."""
        spans = [(s, done, done + n) for s, (done, n) in enumerate(zip(self._done, counts, strict=True)) if n]
        width = max(map(len, self._tables))
        layout = StepLayout(
            query_start=torch.tensor(
                [0, *itertools.accumulate(end - start for _, start, end in spans)], dtype=torch.int32
            ),
            context_len=torch.tensor([end for _, _, end in spans], dtype=torch.int32),
            block_table=torch.tensor(
                [self._tables[s] + [0] * (width - len(self._tables[s])) for s, _, _ in spans],
                dtype=torch.int32,
            ),
        )
        attend = make_attend(
            self._pool, layout, sliding_window=(self._shape.window,), scale=self._shape.scale
        )
        rows = [
            torch.cat([getattr(self._streams[s], name)[start:end] for s, start, end in spans])
            for name in ("q", "k", "v")
        ]
        q, k, v = (tensor.to(self._pool.device) for tensor in rows)
        parts = torch.split(attend(0, q, k, v).cpu(), [end - start for _, start, end in spans])
        for s, _, end in spans:
            self._done[s] = end
        out = [part.new_empty((0, *part.shape[1:])) for part in parts[:1]] * len(counts)
        for (s, _, _), part in zip(spans, parts, strict=True):
            out[s] = part
        return out

    def run(self, steps: list[list[int]]) -> list[Tensor]:
        """All steps, one after the other → [n, heads, d] of each stream."""
        seen: list[list[Tensor]] = [[] for _ in self._streams]
        for counts in steps:
            for s, part in enumerate(self.step(counts)):
                seen[s].append(part)
        return [torch.cat(parts) for parts in seen]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([[70, 33, 5]], id="whole prompts"),
        pytest.param([[16, 33, 1], [54, 0, 4]], id="chunks"),
        pytest.param([[69, 32, 4], [1, 1, 1]], id="decode after prefill"),
        pytest.param([[60, 1, 2], *[[1, 4, 0]] * 8, [2, 0, 3]], id="decode beside prefill"),
    ],
)
def test_it_is_the_definition_of_attention(cuda: torch.device, shape: Shape, steps: list[list[int]]) -> None:
    streams = [Stream.random(length, shape, seed) for seed, length in enumerate((70, 33, 5))]
    outputs = CudaCache(cuda, shape, streams).run(steps)
    for stream, got in zip(streams, outputs, strict=True):
        difference = (got.double() - plain_attention(shape, stream)).abs().max()
        assert difference < TOLERANCES[shape.dtype]


def test_many_long_sequences_are_gathered_in_groups(cuda: torch.device) -> None:
    """More tokens than one gathering may hold: 70 sequences of 2,000 tokens."""
    shape = Shape(heads=4, kv_heads=1, head_dim=64, dtype=torch.bfloat16)
    streams = [Stream.random(2000, shape, seed) for seed in range(70)]
    cache = CudaCache(cuda, shape, streams)
    cache.step([1999] * 70)
    for stream, got in zip(streams, cache.step([1] * 70), strict=True):
        expected = plain_attention(shape, stream)[-1:]
        assert (got.double() - expected).abs().max() < TOLERANCES[torch.bfloat16]
