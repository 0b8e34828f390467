"""What one rank needs of its device, byte by byte, from the model's configuration alone.

With T = max_batched_tokens, R = max_num_seqs, N ranks, b bytes per element, hidden size H, intermediate size
I, vocabulary V, head size d, and a rank's hq query and hkv key-value heads:

    weights       every parameter of the rank, padding included; with --quantization int8 one byte for each
                  element of a linear layer's weight and eight for each of its output features; with fp8 one byte
                  and four, and a tied head counts beside its embedding
    workspace     3·T·H·b          residual, normalised input and branch output
                  + T·H·4          the norm's sum in float32
                  + max(T·(2·hq + 4·hkv + hq)·d·b,  T·3·⌈I/N⌉·b)
                                   the widest layer: q, k, v before and after the rotation and the attention's
                                   output, or gate, up and their product
                  + R·⌈V/N⌉·b + 2·R·N·⌈V/N⌉·4
                                   the rank's logits, then all ranks' in float32, then those without padding
                  + T·(max(H, hq·d, ⌈I/N⌉) + 4)  with --quantization int8: a layer's input in 8-bit integers with
                                   its scales; in float16 also T·2·⌈I/N⌉·4, a product before it is rounded
                  + T·(max(H, hq·d, ⌈I/N⌉) + 4) + 64 MiB  with --quantization fp8: a layer's input in 8-bit floats with
                                   its scales, and what rounding takes for a block of rows
                  + on GPUs 256 MiB        what attention needs beside the pages, whichever kind is chosen, and for
                                   captured steps the same formula with T = R = the largest size, which they share,
                                   and 16 MiB for each size
    communicator  nothing for one rank; on CPUs 2·T·H·4 + R·⌈V/N⌉·4 of buffers; on GPUs what NCCL takes
    runtime       what the process held before it loaded anything, measured when it registered, and what comes with the
                  first steps: kernels of oneDNN, or, where a CPU computes in tiles, the ends of huge pages
    reserve       fragments and rounding of the allocator
    kv_cache      whole blocks of 16 tokens: 2·layers·hkv·d·b bytes per token
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzanstein.model_plan import (
    FP8,
    INT8,
    UNQUANTIZED,
    ModelConfig,
    dtype_bytes,
    kv_bytes_per_token,
    kv_head_range,
    parameter_count,
    weight_bytes_per_rank,
)

from .config import BLOCK_SIZE

MIB = 1024**2
GIB = 1024**3

#: What a process with torch holds before it loads anything, where no worker has measured it yet.
RUNTIME_BYTES = {"cpu": 256 * MIB, "cuda": 700 * MIB}
#: What comes to it with the first step: kernels that oneDNN compiles for each shape, and its scratch memory. Measured
#: on CPUs: 50 to 75 MiB. What is loaded onto a GPU with the kernels counts as its runtime.
KERNEL_BYTES = {"cpu": 64 * MIB, "cuda": 0}
#: The same where products are computed in tiles: code and tables that are touched for the first time, scratch memory of
#: at most 6 MiB. Measured with `medium` in bfloat16 and int8: 24 MiB, apart from the ends of huge pages.
TILES_BYTES = 24 * MIB
#: `huge_pages` of the worker: weights share chunks of 32 MiB, or have one of their own, each of which ends in the
#: middle of a page of 2 MiB.
_CHUNK_BYTES, _PAGE_END_BYTES, _WEIGHTS_OF_A_LAYER = 32 * MIB, MIB, 4
#: Buffers of an NCCL communicator with the default number of channels.
NCCL_BYTES = 256 * MIB
#: A slow core, a slow GPU.
SLOW_OPERATIONS_PER_S = {"cpu": 50e9, "cuda": 20e12}
#: The most that any kind of attention takes beside the pages: gathered ones, or parts of split keys.
GPU_ATTENTION_BYTES = 256 * MIB
#: Rounding to 8-bit floats without Triton: a block of 4 Mi elements in float32, three times, and in 8 bits.
FP8_ROUNDING_BYTES = 64 * MIB
#: The driver's own memory for a captured step of some hundred kernels: a guess, not measured.
GRAPH_BYTES = 16 * MIB
RESERVE_SHARE = 0.03
RESERVE_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes of one rank, apart from the KV cache. Every rank of a group needs the same, but for `runtime`."""

    weights: int
    workspace: int
    communicator: int
    reserve: int
    kv_per_token: int

    @property
    def fixed(self) -> int:
        """All that must be there beside the runtime before the first KV block."""
        return self.weights + self.workspace + self.communicator + self.reserve

    @property
    def kv_block(self) -> int:
        return self.kv_per_token * BLOCK_SIZE


def rank_needs(
    model: ModelConfig,
    size: int,
    *,
    dtype: str,
    kind: str,
    max_batched_tokens: int,
    max_num_seqs: int,
    quantization: str = UNQUANTIZED,
    graph_sizes: tuple[int, ...] = (),
) -> Needs:
    """What one of `size` ranks needs on a device of `kind` ("cpu" or "cuda"), with steps captured at these sizes.

    Raises ModelError if the model can't be split over `size` ranks.
    """
    # On CPUs, and rounded, a tied head is packed: a second copy beside the embedding.
    packed = kind == "cpu" or quantization != UNQUANTIZED
    weights = weight_bytes_per_rank(model, size, dtype, packed=packed, quantization=quantization)
    workspace = _workspace_bytes(model, size, dtype, max_batched_tokens, max_num_seqs)
    if quantization == INT8:
        workspace += _rounded_input_bytes(model, size, max_batched_tokens)
        workspace += _widened_bytes(model, size, dtype, max_batched_tokens)
    if quantization == FP8:
        workspace += _rounded_input_bytes(model, size, max_batched_tokens) + FP8_ROUNDING_BYTES
    if kind != "cpu":
        workspace += GPU_ATTENTION_BYTES
    if graph_sizes:
        largest = max(graph_sizes)
        workspace += _workspace_bytes(model, size, dtype, largest, largest) + GRAPH_BYTES * len(graph_sizes)
    return Needs(
        weights=weights,
        workspace=workspace,
        communicator=_communicator_bytes(model, size, kind, max_batched_tokens, max_num_seqs),
        reserve=max(RESERVE_BYTES, int(RESERVE_SHARE * (weights + workspace))),
        kv_per_token=kv_bytes_per_token(model, size, dtype),
    )


def tiles_serve(dtype: str, quantization: str) -> bool:
    """Whether a CPU that can compute in tiles does so for such weights."""
    return dtype == "bfloat16" or (quantization == INT8 and dtype == "float32")


def kernel_bytes(model: ModelConfig, kind: str, weights: int, *, tiles: bool) -> int:
    """What comes to a rank's runtime with its weights and first steps.

    Args:
        weights: bytes of the rank.
        tiles: its products are computed in tiles.
    """
    if not tiles:
        return KERNEL_BYTES[kind]
    pieces = min(weights // _CHUNK_BYTES, _WEIGHTS_OF_A_LAYER * model.num_layers + 1)
    return TILES_BYTES + pieces * _PAGE_END_BYTES


def slowest_step_s(model: ModelConfig, size: int, *, kind: str, max_batched_tokens: int) -> float:
    """A bound for the time of one step: 2 operations per parameter and token, shared by the ranks, at a rate that
    every device of its kind exceeds three times. Only to tell a long step from a stuck one.
    """
    operations = 2.0 * parameter_count(model) * max_batched_tokens / size
    return 3.0 * operations / SLOW_OPERATIONS_PER_S[kind]


def _workspace_bytes(model: ModelConfig, size: int, dtype: str, tokens: int, rows: int) -> int:
    element = dtype_bytes(dtype)
    first, last = kv_head_range(model, 0, size)
    query_heads, kv_heads = model.num_heads // size, last - first
    attention = tokens * (3 * query_heads + 4 * kv_heads) * model.head_dim * element
    mlp = tokens * 3 * -(-model.intermediate_size // size) * element
    streams = tokens * model.hidden_size * (3 * element + 4)
    vocabulary = -(-model.vocab_size // size)
    logits = rows * vocabulary * element + 2 * rows * size * vocabulary * 4
    return streams + max(attention, mlp) + logits


def _rounded_input_bytes(model: ModelConfig, size: int, tokens: int) -> int:
    """A layer's input in 8 bits, with its scales."""
    inner = -(-model.intermediate_size // size)
    return tokens * (max(model.hidden_size, model.num_heads // size * model.head_dim, inner) + 4)


def _widened_bytes(model: ModelConfig, size: int, dtype: str, tokens: int) -> int:
    """A product of 8-bit integers before torch rounds it."""
    return tokens * 2 * -(-model.intermediate_size // size) * 4 if dtype == "float16" else 0


def _communicator_bytes(model: ModelConfig, size: int, kind: str, tokens: int, rows: int) -> int:
    if size == 1:
        return 0
    if kind != "cpu":
        return NCCL_BYTES
    return 2 * tokens * model.hidden_size * 4 + rows * -(-model.vocab_size // size) * 4


def format_bytes(count: int) -> str:
    """For people: "13.5 GiB", "512 MiB"."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count} B"
