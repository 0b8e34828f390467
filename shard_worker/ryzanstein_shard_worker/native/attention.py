"""Binding of attention.c: attention over pages on CPU, on torch tensors."""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from .library import load_library

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

BLOCK_SIZE = 16  # RZ_BLOCK
HEAD_DIM_MAX = 256  # RZ_HEAD_DIM_MAX
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum rz_dtype


class Isa(enum.IntEnum):
    """Instruction sets that the kernels are built for; a CPU with a higher one has the lower ones (enum rz_isa).

    AVX512BF16 and AMX have kernels for bfloat16 only.
    """

    BASELINE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512BF16 = 3
    AMX = 4


class Call(ctypes.Structure):
    """struct rz_attention, which says what each field means."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("out", "q", "k", "v", "pages")),
        *((name, ctypes.c_void_p) for name in ("query_start", "context_len", "block_table")),
        *((name, ctypes.c_int64) for name in ("q_stride", "k_stride", "v_stride", "num_blocks")),
        *((name, ctypes.c_int32) for name in ("sequences", "table_width", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int32) for name in ("dtype", "window", "threads", "isa")),
        ("scale", ctypes.c_float),
    ]


class NativeAttention:
    """The C kernels at one level of instructions.

    A result's bits depend on its own sequence and on the level, on nothing else: not on the batch, the size
    of the step that computed it, or the threads. Another level gives other bits.
    """

    def __init__(self, library: ctypes.CDLL, isa: Isa | None = None) -> None:
        """`isa` None means the one that is fastest on this CPU.

        Raises:
            ValueError: this CPU doesn't have `isa`.
        """
        for probe in (library.rz_attention_isa, library.rz_attention_best_isa):
            probe.restype, probe.argtypes = ctypes.c_int32, []
        library.rz_attention_level.restype = ctypes.c_int32
        library.rz_attention_level.argtypes = [ctypes.c_int32] * 3
        library.rz_paged_attention.restype = None
        library.rz_paged_attention.argtypes = [ctypes.POINTER(Call)]
        highest = Isa(library.rz_attention_isa())
        if isa is not None and isa > highest:
            raise ValueError(
                f"attention kernels for {isa.name} are wanted, this CPU has {highest.name} at most"
            )
        self.isa = Isa(library.rz_attention_best_isa()) if isa is None else isa
        self.highest = highest
        self._level = library.rz_attention_level
        self._run = library.rz_paged_attention

    def level(self, dtype: torch.dtype, head_dim: int) -> Isa:
        """Of the kernel that computes such heads: `isa`, or the one below that has a kernel for them."""
        return Isa(self._level(self.isa, DTYPES[dtype], head_dim))

    @staticmethod
    def supports(dtype: torch.dtype, head_dim: int, block_size: int) -> bool:
        """Whether the kernels take pages like these."""
        return (
            dtype in DTYPES
            and block_size == BLOCK_SIZE
            and head_dim % 8 == 0
            and 8 <= head_dim <= HEAD_DIM_MAX
        )

    def prepare(
        self,
        pages: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        block_table: Tensor,
        *,
        windows: tuple[int | None, ...],
        scale: float,
        threads: int,
    ) -> Attend:
        """Binds one step's batch; the tensors of indices must be valid for the pages, or memory is corrupted.

        Args:
            pages: [layers, 2, num_blocks, kv_heads, head_dim * 16], contiguous.
            query_start: [S + 1] int32, contiguous, as the other two; see StepLayout.
            context_len: [S] int32.
            block_table: [S, max_blocks] int32.
            windows: per layer, how many keys up to its own a query sees; None: all.
            scale: of the scores, before the softmax; above 0.
            threads: at most so many work at a large step; a small one is done by the caller alone.

        Returns:
            attend(layer, q [T, heads, d], k [T, kv_heads, d], v [T, kv_heads, d]) -> [T, heads, d], for one
            thread; it computes no gradients.

        Raises:
            ValueError: the scale is not above 0.
        """
        if not scale > 0:
            raise ValueError(f"the scale of the scores is {scale}: it has to be above 0")
        _, _, num_blocks, kv_heads, page_elements = pages.shape
        head_dim, rows = page_elements // BLOCK_SIZE, int(query_start[-1])
        layer_bytes = pages.stride(0) * pages.element_size()
        base, dtype, run = pages.data_ptr(), pages.dtype, self._run
        indices = tuple(tensor.contiguous() for tensor in (query_start, context_len, block_table))
        call = Call(
            query_start=indices[0].data_ptr(),
            context_len=indices[1].data_ptr(),
            block_table=indices[2].data_ptr(),
            num_blocks=num_blocks,
            sequences=context_len.shape[0],
            table_width=block_table.shape[1],
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=DTYPES[dtype],
            threads=threads,
            isa=self.isa,
            scale=scale,
        )
        reference = ctypes.byref(call)

        def rows_of(tensor: Tensor, heads: int, name: str) -> Tensor:
            if tensor.shape != (rows, heads, head_dim) or tensor.dtype != dtype or tensor.is_cuda:
                raise ValueError(
                    f"attention takes {name} as {dtype} [{rows}, {heads}, {head_dim}] on cpu, not "
                    f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
                )
            # Slices of the fused projection's rows are taken as they are.
            return tensor if tensor.stride()[1:] == (head_dim, 1) else tensor.contiguous()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = q.shape[1]
            if heads % kv_heads or not 0 <= layer < len(windows):
                raise ValueError(f"layer {layer} of {len(windows)}, {heads} heads for {kv_heads} kv heads")
            q, k, v = rows_of(q, heads, "q"), rows_of(k, kv_heads, "k"), rows_of(v, kv_heads, "v")
            out = torch.empty((rows, heads, head_dim), dtype=dtype)
            call.out, call.q, call.k, call.v = out.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr()
            call.q_stride, call.k_stride, call.v_stride = q.stride(0), k.stride(0), v.stride(0)
            call.pages = base + layer * layer_bytes
            call.heads, call.window = heads, windows[layer] or 0
            run(reference)
            return out

        # What the structure only points to lives as long as the function.
        attend.tensors = (pages, *indices)  # type: ignore[attr-defined]
        return attend


@functools.cache
def native_attention() -> NativeAttention | None:
    """The kernels at this CPU's best level; None where the library can't be had."""
    library = load_library()
    return None if library is None else NativeAttention(library)
