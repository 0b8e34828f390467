"""Paged attention on one core: the kernel against another level of instructions and torch's attention.

    python -m benchmarks.attention [--dtype bfloat16] [--seconds 1] [--isa amx] [--against avx512]

The three take turns, call by call, so that what else the machine does meets all of them; ratios are medians over the
turns. Torch's attention reads contiguous keys and values of the same size. Decoding is measured cold: every call takes
another layer of a pool of 256 MiB, as in a step, where the weights pass through the caches between two layers. Times
are of the thread on its core, so that another process's turn on it doesn't count; a neighbour still costs bandwidth and
cache, so the machine should be quiet. The probes of the bandwidth before and after say whether it was.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ryzanstein_shard_worker.native.attention import Attend, Isa, NativeAttention
from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend

COLD_BYTES = 256 << 20
MODELS = {"bundled": (8, 4, 32), "medium": (20, 4, 64), "8B": (32, 8, 128)}  # heads, kv heads, head_dim
WORKS = (  # sequences, rows of each, context
    (24, 300, 300),
    (1, 300, 300),
    (1, 512, 512),
    (1, 2048, 2048),
    (8, 1, 512),
    (8, 1, 4096),
)


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of equal sequences: `rows` new tokens each at the end of `context` tokens."""

    heads: int
    kv_heads: int
    head_dim: int
    sequences: int
    rows: int
    context: int
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Keys and values that one layer has to read."""
        elements = 2 * self.sequences * self.context * self.kv_heads * self.head_dim
        return elements * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Of the scores and values that causality leaves."""
        seen = sum(range(self.context - self.rows + 1, self.context + 1))
        return 4 * self.sequences * self.heads * self.head_dim * seen

    @property
    def layers(self) -> int:
        return max(2, COLD_BYTES // self.page_bytes) if self.rows == 1 else 1

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.sequences * self.rows
        shapes = [(rows, heads, self.head_dim) for heads in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (torch.randn(shape).to(self.dtype) for shape in shapes)
        return q, k, v


def paged(work: Work, kernel: NativeAttention | None) -> Attend:
    """Attention over pages that lie scattered in the pool."""
    per_sequence = -(-work.context // 16)
    blocks = work.sequences * per_sequence
    pool = KVPool(work.layers, blocks + 1, work.kv_heads, work.head_dim, dtype=work.dtype, kernel=kernel)
    for layer in pool.data:
        layer.normal_()
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1), dtype=torch.int32) + 1
    layout = StepLayout(
        query_start=torch.arange(work.sequences + 1, dtype=torch.int32) * work.rows,
        context_len=torch.full((work.sequences,), work.context, dtype=torch.int32),
        block_table=order.view(work.sequences, per_sequence),
    )
    windows = (None,) * work.layers
    return make_attend(pool, layout, sliding_window=windows, scale=1 / math.sqrt(work.head_dim))


def contiguous(work: Work) -> Callable[[int, Tensor], Tensor]:
    """Torch's attention where nothing has to be gathered: the cache is one tensor of equally long sequences."""
    shape = (work.layers, 2, work.sequences, work.kv_heads, work.context, work.head_dim)
    cache = torch.empty(shape, dtype=work.dtype).normal_()
    group = work.heads // work.kv_heads

    def attend(layer: int, q: Tensor) -> Tensor:
        keys, values = cache[layer]
        if work.rows == 1:  # the query heads of a kv head as its rows: the fastest way to ask for it
            q = q.view(work.sequences, work.kv_heads, group, work.head_dim)
            return scaled_dot_product_attention(q, keys, values)
        q = q.view(work.sequences, work.rows, work.heads, work.head_dim).transpose(1, 2)
        return scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=group > 1)

    return attend


def take_turns(attends: list[Callable[[int], object]], layers: int, budget_s: float) -> list[list[float]]:
    """The thread's seconds per call of each, over `budget_s`, one layer after the other."""
    times: list[list[float]] = [[] for _ in attends]
    end = time.monotonic() + budget_s
    for layer in itertools.cycle(range(layers)):
        for attend, taken in zip(attends, times, strict=True):
            started_at = time.thread_time()
            attend(layer)
            taken.append(time.thread_time() - started_at)
        if time.monotonic() > end and len(times[0]) > 5:
            return [taken[1:] for taken in times]
    raise AssertionError("cycles don't end")


def measure(work: Work, kernels: list[NativeAttention], budget_s: float) -> list[list[float]]:
    """Seconds per layer, turn by turn, of each kernel and of torch's attention."""
    q, k, v = work.inputs()
    dense = contiguous(work)
    attends: list[Callable[[int], object]] = [lambda layer: dense(layer, q)]
    for kernel in reversed(kernels):
        attends.insert(0, partial(_attend, paged(work, kernel), q, k, v))
    return take_turns(attends, work.layers, budget_s)


def _attend(attend: Attend, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
    return attend(layer, q, k, v)


def ratio(slower: list[float], faster: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def bandwidth() -> float:
    """Bytes per second of reading 1 GiB in a row."""
    numbers = torch.ones(1 << 27, dtype=torch.int64)
    times = []
    for _ in range(5):
        started_at = time.thread_time()
        numbers.sum()
        times.append(time.thread_time() - started_at)
    return numbers.nbytes / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure")
    levels = [isa.name.lower() for isa in Isa]
    parser.add_argument("--isa", choices=levels, help="default: this CPU's best")
    parser.add_argument(
        "--against", choices=levels, default="avx512", help="another level, or the highest below"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = load_library()
    if library is None:
        parser.error("the native library was not built: run python shard_worker/build_native.py")
    kernel = NativeAttention(library, Isa[arguments.isa.upper()] if arguments.isa else None)
    other = NativeAttention(library, min(Isa[arguments.against.upper()], kernel.highest))
    dtype: torch.dtype = getattr(torch, arguments.dtype)

    print(f"{arguments.dtype}, one core; memory read in a row {bandwidth() / 1e9:.1f} GB/s")
    print(
        f"{'model':10}{'work':24}{'level':>12}{'us':>10}{other.isa.name.lower() + ' us':>12}{'torch us':>10}"
        f"{'ratios':>14}   ours"
    )
    for (model, shape), (sequences, rows, context) in itertools.product(MODELS.items(), WORKS):
        work = Work(*shape, sequences, rows, context, dtype)
        ours, others, torchs = measure(work, [kernel, other], arguments.seconds)
        seconds = statistics.median(ours)
        many = f"{sequences} x " if sequences > 1 else ""
        name = f"prefill {many}{rows}" if rows > 1 else f"decode {many}{context} tokens"
        rate = f"{work.flops / seconds / 1e9:.0f} GFLOP/s"
        if rows == 1:
            rate = f"{work.page_bytes / seconds / 1e9:.1f} GB/s of pages, {rate}"
        print(
            f"{model:10}{name:24}{kernel.level(dtype, work.head_dim).name.lower():>12}{seconds * 1e6:10.0f}"
            f"{statistics.median(others) * 1e6:12.0f}{statistics.median(torchs) * 1e6:10.0f}"
            f"{ratio(others, ours):7.2f}{ratio(torchs, ours):7.2f}   {rate}",
            flush=True,
        )
    print(f"memory read in a row {bandwidth() / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
