"""Attention, MLP and the block of both equal the same layers on one rank, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    FeatureSlice,
    ParallelAttention,
    ParallelMLP,
    RotaryEmbedding,
    RowParallelLinear,
    TensorParallelTransformerBlock,
    dense_causal_attend,
    head_slice,
)
from ryzanstein_shard_worker.parallel.mlp import swiglu
from tests.ranks import run_ranks

from .joining import CPU, F32, joined, random

HIDDEN, HEAD_DIM, LENGTHS = 20, 8, [5, 1, 3]
ROWS = sum(LENGTHS)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])


def attention_of(
    handler: CommunicationHandler, heads: int, kv_heads: int, *, bias: bool, qk_norm: bool
) -> ParallelAttention:
    return ParallelAttention(
        HIDDEN,
        heads,
        kv_heads,
        HEAD_DIM,
        layer=0,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm_eps=1e-6 if qk_norm else None,
        handler=handler,
        dtype=F32,
        device=CPU,
    )


def mlp_of(handler: CommunicationHandler, inner: int, *, bias: bool) -> ParallelMLP:
    return ParallelMLP(HIDDEN, inner, bias=bias, handler=handler, dtype=F32, device=CPU)


def fill_randomly(module: nn.Module) -> None:
    """The same numbers on every rank: each layer cuts its slices from the undivided weights."""
    with torch.no_grad():
        for seed, part in enumerate(module.modules()):
            if isinstance(part, ColumnParallelLinear | RowParallelLinear):
                bias = random(part.out_features, seed=100 + seed) if part.bias is not None else None
                part.load(random(part.out_features, part.in_features, seed=seed, scale=0.3), bias)
            elif "Norm" in type(part).__name__:
                for parameter in part.parameters():
                    parameter.copy_(1 + random(*parameter.shape, seed=seed, scale=0.1))


@dataclass
class Outcome:
    """What one rank computed, and how its gradients lie in the undivided ones."""

    output: Tensor
    served: Tensor
    input_gradient: Tensor
    gradients: dict[str, tuple[list[FeatureSlice] | None, int, Tensor]] = field(default_factory=dict)


def outcome(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Outcome:
    fill_randomly(module)
    with torch.inference_mode():
        served = call(x)
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    torch.autograd.backward(y, upstream)
    assert leaf.grad is not None
    result = Outcome(y.detach(), served, leaf.grad)
    for name, part in module.named_modules():
        for kind, parameter in part.named_parameters(recurse=False):
            assert parameter.grad is not None
            slices, dim = None, 0
            if isinstance(part, ColumnParallelLinear):
                slices = list(part.parts)
            elif isinstance(part, RowParallelLinear) and kind == "weight":
                slices, dim = [part.part], 1
            result.gradients[f"{name}.{kind}"] = (slices, dim, parameter.grad)
    return result


def check_equal(ranks: list[Outcome], single: Outcome) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank.output, single.output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rank.served, rank.output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rank.input_gradient, single.input_gradient, atol=1e-5, rtol=1e-4)
    for name, (slices, dim, expected) in single.gradients.items():
        of_ranks = [rank.gradients[name] for rank in ranks]
        if slices is None:
            for _, _, gradient in of_ranks:
                torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=name)
            continue
        for i, piece in enumerate(torch.split(expected, [part.size for part in slices], dim)):
            parts, gradients = [], []
            for rank_slices, _, gradient in of_ranks:
                assert rank_slices is not None
                parts.append(rank_slices[i])
                gradients.append(torch.split(gradient, [part.rows for part in rank_slices], dim)[i])
            torch.testing.assert_close(joined(parts, gradients, dim), piece, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("world", "heads", "kv_heads"),
    [(2, 4, 4), (2, 4, 2), (3, 6, 3), (4, 8, 4), (2, 4, 1), (4, 4, 1), (4, 8, 2), (3, 6, 1)],
)
@pytest.mark.parametrize(("bias", "qk_norm", "window"), [(False, False, None), (True, True, 2)])
def test_attention_split_by_heads_is_the_attention(
    world: int, heads: int, kv_heads: int, bias: bool, qk_norm: bool, window: int | None
) -> None:
    x, upstream = random(ROWS, HIDDEN, seed=50), random(ROWS, HIDDEN, seed=51)
    rotary = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling=None, max_positions=8, dtype=F32, device=CPU)
    rotation, attend = rotary(POSITIONS), dense_causal_attend(LENGTHS, window)

    def on_rank(handler: CommunicationHandler) -> Outcome:
        attention = attention_of(handler, heads, kv_heads, bias=bias, qk_norm=qk_norm)
        return outcome(attention, lambda y: attention(y, rotation, attend), x, upstream)

    check_equal(run_ranks(world, on_rank), on_rank(SingleHandler()))


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("inner", [24, 10, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_an_mlp_split_by_inner_features_is_the_mlp(world: int, inner: int, bias: bool) -> None:
    x, upstream = random(ROWS, HIDDEN, seed=50), random(ROWS, HIDDEN, seed=51)

    def on_rank(handler: CommunicationHandler) -> Outcome:
        mlp = mlp_of(handler, inner, bias=bias)
        return outcome(mlp, mlp, x, upstream)

    check_equal(run_ranks(world, on_rank), on_rank(SingleHandler()))


@pytest.mark.parametrize("world", [2, 4])
def test_a_block_over_ranks_is_the_block(world: int) -> None:
    x, upstream = random(ROWS, HIDDEN, seed=50), random(ROWS, HIDDEN, seed=51)
    rotary = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling=None, max_positions=8, dtype=F32, device=CPU)
    rotation, attend = rotary(POSITIONS), dense_causal_attend(LENGTHS)

    def on_rank(handler: CommunicationHandler) -> Outcome:
        block = TensorParallelTransformerBlock(
            attention_of(handler, 8, 2, bias=False, qk_norm=True),
            mlp_of(handler, 10, bias=False),
            hidden_size=HIDDEN,
            norm_eps=1e-5,
            handler=handler,
            dtype=F32,
            device=CPU,
        )
        return outcome(block, lambda y: block(y, rotation, attend), x, upstream)

    check_equal(run_ranks(world, on_rank), on_rank(SingleHandler()))


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    gate, up = random(4, 10), random(4, 10, seed=1)
    with torch.inference_mode():
        fused = swiglu(torch.cat([gate, up], dim=1))
    torch.testing.assert_close(fused, functional.silu(gate) * up)


def test_a_row_of_swiglu_keeps_its_bits_whatever_the_threads_do() -> None:
    """77 is no multiple of a vector, and the batch is large enough for torch to cut it between threads."""
    gate_up = random(1000, 2 * 77)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        alone = torch.cat([swiglu(gate_up[i : i + 1]) for i in range(1000)])
        torch.set_num_threads(3)
        try:
            together = swiglu(gate_up)
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(together, alone)


def test_heads_are_never_cut() -> None:
    with pytest.raises(ValueError, match="3 heads can't be split over 2 ranks"):
        head_slice(3, 8, 0, 2)
    with pytest.raises(ValueError, match="5 query heads can't be split over 2 ranks"):
        run_ranks(2, lambda handler: attention_of(handler, 5, 1, bias=False, qk_norm=False))


def test_neighbours_share_a_kv_head() -> None:
    assert [head_slice(2, 8, rank, 4).start for rank in range(4)] == [0, 0, 8, 8]
    assert {head_slice(2, 8, rank, 4).replicas for rank in range(4)} == {2}
