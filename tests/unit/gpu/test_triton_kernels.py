"""Each kernel against its definition, in an order of pages that says nothing, with NaN where nothing was written."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.unit.attention.streams import Shape, Stream, plain_attention

pytestmark = pytest.mark.usefixtures("triton")

BLOCK = 16
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class Pages:
    """One layer's pages of several streams, written and read by the kernels."""

    def __init__(self, shape: Shape, streams: list[Stream]) -> None:
        self._shape, self._streams = shape, streams
        self._done = [0] * len(streams)
        counts = [-(-len(stream) // BLOCK) for stream in streams]
        blocks = list(range(1, sum(counts) + 1))
        random.Random(4).shuffle(blocks)
        taken = iter(blocks)
        tables = [list(itertools.islice(taken, count)) for count in counts]
        width = max(counts)
        self._table = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)
        size = (len(blocks) + 1, BLOCK, shape.kv_heads, shape.head_dim)
        self._keys, self._values = (torch.full(size, math.nan, dtype=shape.dtype) for _ in range(2))

    def step(self, counts: list[int], *, tokens: int, splits: int = 1) -> list[Tensor]:
        """The next `counts[s]` tokens of every stream → attention [counts[s], heads, d]."""
        from ryzanstein_shard_worker.gpu.triton_attention import attend, store

        shape = self._shape
        spans = [(s, done, done + n) for s, (done, n) in enumerate(zip(self._done, counts, strict=True))]
        q, k, v = (
            torch.cat([getattr(self._streams[s], name)[a:b] for s, a, b in spans]) for name in ("q", "k", "v")
        )
        slots = [
            int(self._table[s, p // BLOCK]) * BLOCK + p % BLOCK for s, a, b in spans for p in range(a, b)
        ]
        store(self._keys, self._values, k, v, torch.tensor(slots, dtype=torch.int32))
        tiles = [(s, first) for s, count in enumerate(counts) for first in range(0, count, tokens)]
        out = torch.full_like(q, math.nan, memory_format=torch.contiguous_format)
        workspace = None
        if splits > 1:
            cells = (len(tiles), shape.heads, splits)
            workspace = torch.full((*cells, shape.head_dim), math.nan), torch.full(cells, math.nan)
        attend(
            out, q, self._keys, self._values,
            tiles=(
                torch.tensor([s for s, _ in tiles], dtype=torch.int32),
                torch.tensor([first for _, first in tiles], dtype=torch.int32),
            ),
            query_start=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
            context_len=torch.tensor([b for _, _, b in spans], dtype=torch.int32),
            block_table=self._table, tokens=tokens, splits=splits, workspace=workspace,
            window=shape.window, scale=shape.scale,
        )  # fmt: skip
        self._done = [b for _, _, b in spans]
        return list(torch.split(out, counts))


SHAPES = [
    Shape(heads=8, kv_heads=2, head_dim=64),
    Shape(heads=4, kv_heads=4, head_dim=24, dtype=torch.float16),
    Shape(heads=6, kv_heads=2, head_dim=32, window=21),
    Shape(heads=8, kv_heads=1, head_dim=16, dtype=torch.float16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_pages_is_its_definition(shape: Shape) -> None:
    streams = [Stream.random(length, shape, seed) for seed, length in enumerate((75, 38, 9))]
    pages = Pages(shape, streams)
    steps = [
        pages.step([40, 33, 1], tokens=16),
        pages.step([32, 1, 5], tokens=5),
        pages.step([1, 1, 1], tokens=1),
        pages.step([1, 1, 1], tokens=1, splits=4),
        pages.step([1, 2, 1], tokens=2),
    ]
    for number, stream in enumerate(streams):
        got = torch.cat([step[number] for step in steps])
        expected = plain_attention(shape, stream)[: len(got)]
        assert (got.double() - expected).abs().max() < TOLERANCES[shape.dtype]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16], ids=str
)  # the interpreter cuts bfloat16 off
def test_norms_rotation_and_gate_are_those_of_the_processor(dtype: torch.dtype) -> None:
    from ryzanstein_shard_worker.gpu.triton_elementwise import TritonElementwise
    from ryzanstein_shard_worker.parallel.mlp import swiglu
    from ryzanstein_shard_worker.parallel.rotary import Rotation, rotate

    generator = torch.Generator().manual_seed(3)

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    near = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    kernels = TritonElementwise()
    x, delta, weight = numbers(5, 48), numbers(5, 48), numbers(48)
    norm = torch.nn.functional.rms_norm
    near(kernels.rms_norm(x, weight, 1e-5), norm(x, (48,), weight, 1e-5))
    total, normed = kernels.add_rms_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, x + delta)
    near(normed, norm(total, (48,), weight, 1e-5))
    assert kernels.rms_norm(x[:0], weight, 1e-5).shape == (0, 48)

    with torch.inference_mode():
        gate_up = numbers(3, 2 * 1500)
        near(kernels.swiglu(gate_up.clone()), swiglu(gate_up.clone()))

    angles = torch.rand(5, 1, 12, generator=generator) * 6
    rotation = Rotation(
        torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    )
    heads = numbers(5, 9, 24)[:, :7]  # rows lie apart
    norms = numbers(24), numbers(24)
    for given in (None, norms):
        expected = heads.clone()
        for part, w in ((slice(0, 4), norms[0]), (slice(4, 6), norms[1])):
            normed = heads[:, part] if given is None else norm(heads[:, part], (24,), w, 1e-5)
            expected[:, part] = rotate(normed, rotation)
        got = numbers(5, 9, 24)[:, :7]
        got.copy_(heads)
        kernels.rotate_heads(got, (4, 2), *rotation, given, 1e-5)
        near(got, expected)


def test_the_check_at_the_start_takes_right_kernels_and_refuses_wrong_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ryzanstein_shard_worker.gpu import elementwise
    from ryzanstein_shard_worker.gpu.triton_elementwise import TritonElementwise

    device_elementwise = elementwise.device_elementwise.__wrapped__
    assert device_elementwise(torch.float32, torch.device("cpu")) is not None
    monkeypatch.setattr(
        TritonElementwise, "swiglu", lambda self, gate_up: gate_up[:, : gate_up.shape[1] // 2]
    )
    assert device_elementwise(torch.float32, torch.device("cpu")) is None
