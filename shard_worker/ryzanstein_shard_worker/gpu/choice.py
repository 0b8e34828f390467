"""Which attention a GPU uses: the first kind that is there and gives the right numbers on this device.

Asked once when a shard's pages are there. Each candidate computes a small batch of a prompt, a chunk and a row that
decodes, and is compared with torch's plain operations: a kernel that this GPU, driver or version does not get right is
never served from. One log line says what was taken, and why not what stands before it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import Tensor

from ..kv_pool import KVPool, StepLayout
from ..memory_errors import is_out_of_memory
from .attention import DeviceAttention, ModelAttention
from .paged_flashinfer import FlashInferAttention
from .paged_gathered import GatheredAttention
from .paged_varlen import VarlenAttention

log = structlog.get_logger(__name__)

Make = Callable[[KVPool, ModelAttention], DeviceAttention]
#: Least compute capability: FlashInfer's kernels, Triton's tensor cores for bfloat16, FlashAttention 2.
_CAPABILITY = (8, 0)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


class UnavailableError(Exception):
    """A kind can't be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class _Key:
    """What a kind's fitness depends on."""

    device: torch.device
    dtype: torch.dtype
    kv_heads: int
    head_dim: int
    block_size: int
    heads: int
    windowed: bool
    plain: bool
    scale: float
    reproducible: bool
    #: Only this one; empty: whichever fits.
    kind: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kind; `make` raises UnavailableError or ValueError where it can't be had or does not fit."""

    name: str
    make: Make


def choose_attention(pool: KVPool, model: ModelAttention, kind: str = "") -> DeviceAttention:
    """The best kind for these pages; the search is made once per process and shape.

    Args:
        kind: only the candidate of this name is tried; empty or "auto": all.

    Raises:
        RuntimeError: none gives the right numbers; the message says why, for each.
    """
    key = _Key(
        pool.device,
        pool.dtype,
        pool.num_kv_heads,
        pool.head_dim,
        pool.block_size,
        model.heads,
        any(window is not None for window in model.windows),
        any(window is None for window in model.windows),
        model.scale,
        model.reproducible,
        "" if kind == "auto" else kind,
    )
    return _search(key)(pool, model)


def attention_problem(kind: str, device: torch.device) -> str:
    """Why this kind can't be had on the device, as far as can be said before there are pages; empty: it may."""
    try:
        if kind in _LIBRARIES:
            _check_capability(device)
            _imported(_LIBRARIES[kind])
    except UnavailableError as error:
        return f"--gpu-attention {kind}: {error}"
    return ""


@functools.cache
def _search(key: _Key) -> Make:
    candidates = tuple(candidate for candidate in CANDIDATES if key.kind in ("", candidate.name))
    name, make, refused = first_fitting(candidates, key)
    log.info("attention_chosen", attention=name, device=str(key.device), passed_over=refused)
    return make


def first_fitting(candidates: tuple[Candidate, ...], key: Any) -> tuple[str, Make, str]:
    """→ the first candidate that computes the right numbers, and why those before it were not taken.

    Raises:
        RuntimeError: none does.
    """
    refused: list[str] = []
    for candidate in candidates:
        try:
            worst = max(_errors(candidate.make, key))
        except (UnavailableError, ValueError) as error:
            refused.append(f"{candidate.name}: {error}")
        except torch.AcceleratorError:
            raise  # the device's context is lost: nothing can be tried after it
        except Exception as error:  # whatever a library raises, the next kind may work
            if is_out_of_memory(error):
                raise
            refused.append(f"{candidate.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        else:
            if worst <= _TOLERANCE[key.dtype]:
                return candidate.name, candidate.make, "; ".join(refused)
            refused.append(f"{candidate.name}: its numbers are wrong by {worst:.2g}")
    raise RuntimeError(f"no attention works on {key.device}: {'; '.join(refused)}")


def _errors(make: Make, key: Any) -> Iterator[float]:
    """The largest difference from the definition, for each kind of layer that the model has."""
    windows: list[int | None] = [None] if key.plain else []
    windows += [21] if key.windowed else []
    for window in windows:
        model = ModelAttention(key.heads, (window,), key.scale, key.reproducible)
        pool = KVPool(
            1,
            9,
            key.kv_heads,
            key.head_dim,
            block_size=key.block_size,
            dtype=key.dtype,
            device=key.device,
            kernel=None,
        )
        pool.data.fill_(math.nan)  # what nobody wrote must not be seen
        yield _error(make(pool, model), pool, model)


@torch.inference_mode()
def _error(attention: DeviceAttention, pool: KVPool, model: ModelAttention) -> float:
    """A chunk of a prompt, then the rest of it beside a row that decodes, from pages in disorder."""
    size = pool.block_size
    generator = torch.Generator().manual_seed(11)
    heads = [model.heads, pool.num_kv_heads, pool.num_kv_heads]
    lengths = (2 * size + 5, size + 3)
    tables = ((7, 2, 5), (3, 8, 0))
    streams = [
        torch.randn(length, sum(heads), pool.head_dim, generator=generator).to(pool.dtype)
        for length in lengths
    ]
    done = [0, 0]
    worst = 0.0
    for counts in ((size + 2, lengths[1] - 1), (lengths[0] - size - 2, 1)):
        ends = [before + count for before, count in zip(done, counts, strict=True)]
        layout = StepLayout(
            query_start=torch.tensor([0, counts[0], sum(counts)], dtype=torch.int32),
            context_len=torch.tensor(ends, dtype=torch.int32),
            block_table=torch.tensor(tables, dtype=torch.int32),
        )
        plan = attention.prepare(layout)
        rows = torch.cat([stream[a:b] for stream, a, b in zip(streams, done, ends, strict=True)]).to(
            pool.device
        )
        attend = plan.bind([part.to(pool.device) for part in plan.parts])
        got = attend(0, *rows.split_with_sizes(heads, dim=1)).float().cpu()
        expected = torch.cat(
            [
                _definition(stream[:b], heads, model)[a:b]
                for stream, a, b in zip(streams, done, ends, strict=True)
            ]
        )
        difference = (got - expected).abs().max().item()
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
        done = ends
    return worst


def _definition(stream: Tensor, heads: list[int], model: ModelAttention) -> Tensor:
    """One sequence [n, heads + 2 kv_heads, d] → attention of all its rows [n, heads, d] float32, every score held."""
    q, k, v = (part.float().transpose(0, 1) for part in stream.split_with_sizes(heads, dim=1))
    group = heads[0] // heads[1]
    position = torch.arange(len(stream))
    seen = position <= position[:, None]
    window = model.windows[0]
    if window is not None:
        seen &= position > position[:, None] - window
    scores = (q @ k.repeat_interleave(group, 0).transpose(1, 2) * model.scale).masked_fill(~seen, -math.inf)
    out: Tensor = scores.softmax(-1) @ v.repeat_interleave(group, 0)
    return out.transpose(0, 1)


def _flashinfer(pool: KVPool, model: ModelAttention) -> DeviceAttention:
    _check_capability(pool.device)
    return FlashInferAttention(pool, model, _imported(_LIBRARIES["flashinfer"]))


def _triton(pool: KVPool, model: ModelAttention) -> DeviceAttention:
    _check_capability(pool.device)
    _imported(_LIBRARIES["triton"])
    from .paged_triton import TritonAttention

    return TritonAttention(pool, model)


def _varlen(pool: KVPool, model: ModelAttention) -> DeviceAttention:
    _check_capability(pool.device)
    varlen_attn = _imported(_LIBRARIES["varlen"]).varlen_attn
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # from torch 2.12 on it wants to be told
        varlen_attn = functools.partial(varlen_attn, enable_gqa=True)
    return VarlenAttention(pool, model, varlen_attn)


def _check_capability(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise UnavailableError("it needs a GPU of compute capability 8.0 or more")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"not installed ({error})") from None


_LIBRARIES = {"flashinfer": "flashinfer", "triton": "triton", "varlen": "torch.nn.attention.varlen"}
CANDIDATES = (
    Candidate("flashinfer", _flashinfer),
    Candidate("triton", _triton),
    Candidate("varlen", _varlen),
    Candidate("torch", GatheredAttention),
)
