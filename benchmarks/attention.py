"""Paged attention on one core, against torch's attention over contiguous keys and values of the same size.

    python benchmarks/attention.py [--dtype bfloat16] [--seconds 1] [--isa avx512]

Decoding is measured cold: every call takes another layer of a pool of 256 MiB, as in a step, where the weights
pass through the caches between two layers. Times are of the thread on its core, so that another process's turn on
it doesn't count; a neighbour still costs bandwidth and cache, so the machine should be quiet. The probes of the
bandwidth before and after say whether it was.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ryzanstein_shard_worker.native.attention import Attend, Isa, NativeAttention
from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend

COLD_BYTES = 256 << 20
MODELS = {"medium": (20, 4, 64), "8B": (32, 8, 128), "multi-head": (8, 8, 64)}  # heads, kv heads, head_dim


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


def seconds_per_layer(attend: Callable[[int], object], layers: int, budget_s: float) -> float:
    """Median of the thread's time per call over `budget_s`, one layer after the other."""
    times: list[float] = []
    end = time.monotonic() + budget_s
    for layer in itertools.cycle(range(layers)):
        started_at = time.thread_time()
        attend(layer)
        times.append(time.thread_time() - started_at)
        if time.monotonic() > end and len(times) > 5:
            break
    return statistics.median(times[1:])


def measure(work: Work, kernel: NativeAttention | None, budget_s: float) -> tuple[float, float]:
    """Seconds per layer of ours and of torch's."""
    q, k, v = work.inputs()
    ours, dense = paged(work, kernel), contiguous(work)
    return (
        seconds_per_layer(lambda layer: ours(layer, q, k, v), work.layers, budget_s),
        seconds_per_layer(lambda layer: dense(layer, q), work.layers, budget_s),
    )


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
    parser.add_argument("--isa", choices=[isa.name.lower() for isa in Isa], help="default: this CPU's best")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = load_library()
    if library is None:
        parser.error("the native library was not built: run python shard_worker/build_native.py")
    kernel = NativeAttention(library, Isa[arguments.isa.upper()] if arguments.isa else None)
    dtype: torch.dtype = getattr(torch, arguments.dtype)

    print(
        f"{arguments.dtype}, {kernel.isa.name.lower()}, one core; memory read in a row {bandwidth() / 1e9:.1f} GB/s"
    )
    print(f"{'model':12}{'work':26}{'ours us':>10}{'torch us':>10}{'ratio':>7}   ours")
    for model, (heads, kv_heads, head_dim) in MODELS.items():
        for sequences, rows, context in ((1, 1, 256), (1, 1, 2048), (8, 1, 256), (8, 1, 1024), (1, 512, 512)):
            work = Work(heads, kv_heads, head_dim, sequences, rows, context, dtype)
            ours, torchs = measure(work, kernel, arguments.seconds)
            name = f"prefill of {rows}" if rows > 1 else f"decode {sequences} x {context} tokens"
            rate = f"{work.flops / ours / 1e9:.0f} GFLOP/s"
            if rows == 1:
                rate = f"{work.page_bytes / ours / 1e9:.1f} GB/s of pages, {rate}"
            print(
                f"{model:12}{name:26}{ours * 1e6:10.0f}{torchs * 1e6:10.0f}{torchs / ours:7.2f}   {rate}",
                flush=True,
            )
    print(f"memory read in a row {bandwidth() / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
