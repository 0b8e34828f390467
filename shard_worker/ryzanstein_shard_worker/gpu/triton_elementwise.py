"""Norms, rotations and the gate on a GPU: one Triton kernel each, where torch's operations are five to eight.

The functions are those of `native.elementwise`, with the same roundings.
"""

# Triton reads the kernels' annotations, so they are not postponed; its constants are in capitals everywhere.
# ruff: noqa: N803, N806
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(  # type: ignore[no-untyped-def]
    out, total, x, delta, weight, size, eps, ADDS: tl.constexpr, PADDED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, PADDED)
    inside = column < size
    numbers = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        numbers += tl.load(delta + row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = numbers.to(out.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=inside)
        numbers = rounded.to(tl.float32)
    square = tl.sum(numbers * numbers, axis=0) / size
    scaled = numbers * tl.rsqrt(square + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, (scaled * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(  # type: ignore[no-untyped-def]
    heads,
    cos,
    sin,
    query_weight,
    key_weight,
    row_stride,
    eps,
    QUERIES: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    HALF: tl.constexpr = DIM // 2
    column = tl.arange(0, PADDED_HALF)
    inside = column < HALF
    vector = heads + row * row_stride + head * DIM
    low = tl.load(vector + column, mask=inside, other=0.0)
    high = tl.load(vector + HALF + column, mask=inside, other=0.0)
    kind = low.dtype
    low, high = low.to(tl.float32), high.to(tl.float32)
    if NORMS:
        weight = query_weight if head < QUERIES else key_weight
        factor = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / DIM + eps)
        low = low * factor * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        high = high * factor * tl.load(weight + HALF + column, mask=inside, other=0.0).to(tl.float32)
        low, high = low.to(kind).to(tl.float32), high.to(kind).to(tl.float32)
    turn = row * DIM + column  # both halves of the cosine are equal, and the sine's are but for the sign
    c = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + turn + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(vector + column, (low * c - high * s).to(kind), mask=inside)
    tl.store(vector + HALF + column, (high * c + low * s).to(kind), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_kernel(out, gate_up, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        out + row * size + column, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside
    )


class TritonElementwise:
    """As `NativeElementwise`, on a GPU's tensors of any floating-point dtype. A row's bits are its own."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, n] / root mean square of its rows * weight [n], in float32, rounded once."""
        out = torch.empty_like(x)
        if len(x):
            self._norm(out, out, x, x, weight, eps, adds=False)
        return out

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(x + delta, its norm) [T, n] each; the sum is rounded before it is normalised."""
        total, out = torch.empty_like(x), torch.empty_like(x)
        if len(x):
            self._norm(out, total, x, delta, weight, eps, adds=True)
        return total, out

    def rotate_heads(
        self,
        heads: Tensor,
        counts: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """Turns queries and keys in place: heads [T, h, d], of which the first `counts`; cos, sin [T, 1, d], the sine
        negative in the first half; `norms`: weights [d] of norms of queries and keys before that."""
        rows, _, dim = heads.shape
        if not rows:
            return
        _rotate_kernel[(rows, sum(counts))](
            heads,
            cos,
            sin,
            *((cos, cos) if norms is None else norms),
            heads.stride(0),
            eps,
            QUERIES=counts[0],
            DIM=dim,
            PADDED_HALF=triton.next_power_of_2(dim // 2),
            NORMS=norms is not None,
            num_warps=1,
        )

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[T, 2n], gate then up → silu(gate) * up [T, n], in float32, rounded once."""
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        if rows:
            _gate_kernel[(rows, triton.cdiv(width // 2, 1024))](out, gate_up, width // 2, WIDTH=1024)
        return out

    def _norm(
        self, out: Tensor, total: Tensor, x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, adds: bool
    ) -> None:
        rows, size = x.shape
        padded = triton.next_power_of_2(size)
        _norm_kernel[(rows,)](
            out,
            total,
            x,
            delta,
            weight,
            size,
            eps,
            ADDS=adds,
            PADDED=padded,
            num_warps=min(16, max(1, padded // 512)),
        )
