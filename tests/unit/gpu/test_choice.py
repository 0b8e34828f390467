"""Which attention is taken: the first that is there and right, by a check on the device that will use it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ryzanstein_coordinator.config import GPU_ATTENTION
from ryzanstein_shard_worker.gpu.attention import DecodeRows, DeviceAttention, ModelAttention, Plan
from ryzanstein_shard_worker.gpu.choice import (
    CANDIDATES,
    Candidate,
    UnavailableError,
    attention_problem,
    choose_attention,
    first_fitting,
)
from ryzanstein_shard_worker.gpu.paged_flashinfer import page_lists
from ryzanstein_shard_worker.gpu.paged_gathered import GatheredAttention
from ryzanstein_shard_worker.gpu.paged_varlen import VarlenAttention
from ryzanstein_shard_worker.kv_pool import KVPool, StepLayout
from ryzanstein_shard_worker.native.attention import Attend


def key(**changes: Any) -> SimpleNamespace:
    given = {
        "device": torch.device("cpu"), "dtype": torch.float32, "kv_heads": 2, "head_dim": 16, "block_size": 16,
        "heads": 4, "windowed": True, "plain": True, "scale": 0.25, "reproducible": False,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


def varlen_by_definition(
    q: Tensor, k: Tensor, v: Tensor, begins_q: Tensor, begins_k: Tensor, most_q: int, most_k: int, *,
    scale: float, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` promises; that itself runs on CUDA alone."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    spans = zip(itertools.pairwise(begins_q.tolist()), itertools.pairwise(begins_k.tolist()), strict=True)
    for (q0, q1), (k0, k1) in spans:
        assert q1 - q0 <= most_q
        assert k1 - k0 <= most_k
        position = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)  # the mask ends at the last key
        keys = torch.arange(k1 - k0)
        seen = keys <= position
        if window_size[0] >= 0:
            seen &= keys >= position - window_size[0]
        rows, columns = (
            part.repeat_interleave(group, 1).transpose(0, 1).float() for part in (k[k0:k1], v[k0:k1])
        )
        scores = (q[q0:q1].transpose(0, 1).float() @ rows.transpose(1, 2) * scale).masked_fill(
            ~seen, -torch.inf
        )
        out[q0:q1] = (scores.softmax(-1) @ columns).transpose(0, 1).to(q.dtype)
    return out


def varlen(pool: KVPool, model: ModelAttention) -> DeviceAttention:
    return VarlenAttention(pool, model, varlen_by_definition)


def missing(pool: KVPool, model: ModelAttention) -> DeviceAttention:
    raise UnavailableError("not installed")


class Wrong(GatheredAttention):
    """Forgets the sliding window."""

    def __init__(self, pool: KVPool, model: ModelAttention) -> None:
        super().__init__(pool, ModelAttention(model.heads, (None,), model.scale, False))


class Failing(GatheredAttention):
    def prepare(self, layout: StepLayout) -> Plan:
        def bind(there: Sequence[Tensor]) -> Attend:
            raise RuntimeError("no kernel image is available for execution on the device\nand advice")

        return Plan([], bind)

    def decoding(self, rows: DecodeRows) -> None:
        return None


def test_the_first_that_gives_the_right_numbers_is_taken_and_the_others_are_named() -> None:
    candidates = (
        Candidate("gone", missing),
        Candidate("failing", Failing),
        Candidate("wrong", Wrong),
        Candidate("torch", GatheredAttention),
    )
    name, make, refused = first_fitting(candidates, key())
    assert (name, make) == ("torch", GatheredAttention)
    assert "gone: not installed" in refused
    assert "failing: RuntimeError: no kernel image is available for execution on the device;" in refused
    assert "wrong: its numbers are wrong by" in refused


def test_only_the_kind_that_was_asked_for_is_tried() -> None:
    pool, model = KVPool(1, 9, 2, 16, kernel=None), ModelAttention(4, (None,), 0.25, False)
    assert isinstance(choose_attention(pool, model, "torch"), GatheredAttention)
    with pytest.raises(RuntimeError, match="no attention works on cpu: flashinfer: not installed"):
        choose_attention(pool, model, "flashinfer")
    assert ("auto", *(candidate.name for candidate in CANDIDATES)) == GPU_ATTENTION


def test_a_kind_without_its_library_is_named_before_weights_are_loaded() -> None:
    cpu = torch.device("cpu")
    assert attention_problem("torch", cpu) == ""
    assert attention_problem("flashinfer", cpu).startswith("--gpu-attention flashinfer: not installed")


def test_a_device_on_which_nothing_works_is_an_error_that_says_what_was_tried() -> None:
    with pytest.raises(RuntimeError, match="no attention works on cpu: gone: not installed"):
        first_fitting((Candidate("gone", missing),), key())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gathering_for_torchs_attention_of_variable_lengths_gives_the_right_numbers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_fitting((Candidate("varlen", varlen),), key(dtype=dtype))[0] == "varlen"
    # One sequence at a time, as when they are long.
    monkeypatch.setattr("ryzanstein_shard_worker.gpu.paged_varlen.GATHERED_BYTES", 1)
    assert first_fitting((Candidate("varlen", varlen),), key(dtype=dtype))[0] == "varlen"


def test_kinds_without_kernels_for_float32_are_passed_over() -> None:
    candidates = (Candidate("varlen", varlen), Candidate("torch", GatheredAttention))
    name, _, refused = first_fitting(candidates, key())
    assert name == "torch"
    assert "varlen: it has no kernel for torch.float32" in refused


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16], ids=str
)  # the interpreter cuts bfloat16 off
@pytest.mark.parametrize("reproducible", [True, False])
def test_triton_gives_the_right_numbers(dtype: torch.dtype, *, reproducible: bool) -> None:
    triton = [candidate for candidate in CANDIDATES if candidate.name == "triton"]
    found = first_fitting(tuple(triton), key(dtype=dtype, reproducible=reproducible))
    assert (found[0], found[2]) == ("triton", "")


def test_pages_are_listed_as_flashinfer_wants_them() -> None:
    indptr, indices, last = page_lists(
        torch.tensor([33, 1, 16], dtype=torch.int32),
        torch.tensor([[7, 4, 9], [0, 0, 0], [5, 0, 0]], dtype=torch.int32),
        16,
    )
    assert indptr.tolist() == [0, 3, 4, 5]
    assert indices.tolist() == [7, 4, 9, 0, 5]
    assert last.tolist() == [1, 1, 16]
    assert {indptr.dtype, indices.dtype, last.dtype} == {torch.int32}
