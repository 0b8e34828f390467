"""Linear layers over ranks equal torch's own, forward and backward, whatever the sizes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    FeatureSlice,
    RowParallelLinear,
    even_slice,
)
from tests.ranks import run_ranks

from .joining import CPU, F32, joined, random

WORLDS = [1, 2, 3, 4]
SIZES = [(12, 24), (7, 10), (5, 3)]  # evenly divisible, not, and fewer features than ranks


@dataclass
class Outcome:
    part: FeatureSlice
    output: Tensor
    input_gradient: Tensor
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None


def reference(linear: nn.Linear, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = linear(x)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def a_linear(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        for seed, parameter in enumerate(linear.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed, scale=0.5))
    return linear


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
@pytest.mark.parametrize("gather", [False, True])
def test_a_column_parallel_linear_is_the_linear(
    world: int, in_features: int, out_features: int, gather: bool
) -> None:
    linear = a_linear(in_features, out_features, bias=True)
    x, upstream = random(6, in_features, seed=7), random(6, out_features, seed=8)
    expected, expected_gradient = reference(linear, x, upstream)

    def on_rank(handler: CommunicationHandler) -> Outcome:
        layer = ColumnParallelLinear(
            in_features, out_features, bias=True, handler=handler, dtype=F32, device=CPU, gather_output=gather
        )
        layer.load(linear.weight, linear.bias)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(upstream if gather else layer.parts[0].cut(upstream, 1))
        assert leaf.grad is not None
        assert layer.weight is not None
        assert layer.bias is not None
        return Outcome(layer.parts[0], y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad)

    ranks = run_ranks(world, on_rank)
    slices = [rank.part for rank in ranks]
    outputs = [rank.output for rank in ranks]
    for output in outputs if gather else [joined(slices, outputs, dim=1)]:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    for rank in ranks:
        torch.testing.assert_close(rank.input_gradient, expected_gradient, atol=1e-5, rtol=0)
    weight_gradient = joined(slices, [rank.weight_gradient for rank in ranks])
    torch.testing.assert_close(weight_gradient, linear.weight.grad, atol=1e-5, rtol=0)
    bias_gradient = joined(slices, [rank.bias_gradient for rank in ranks])
    torch.testing.assert_close(bias_gradient, linear.bias.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
@pytest.mark.parametrize("split_input", [False, True])
def test_a_row_parallel_linear_is_the_linear(
    world: int, in_features: int, out_features: int, split_input: bool
) -> None:
    linear = a_linear(in_features, out_features, bias=True)
    x, upstream = random(6, in_features, seed=7), random(6, out_features, seed=8)
    expected, expected_gradient = reference(linear, x, upstream)

    def on_rank(handler: CommunicationHandler) -> Outcome:
        layer = RowParallelLinear(
            in_features,
            out_features,
            bias=True,
            handler=handler,
            dtype=F32,
            device=CPU,
            split_input=split_input,
        )
        layer.load(linear.weight, linear.bias)
        leaf = (x.clone() if split_input else layer.part.cut(x, 1)).requires_grad_()
        y = layer(leaf)
        y.backward(upstream)
        assert leaf.grad is not None
        assert layer.weight is not None
        assert layer.bias is not None
        return Outcome(layer.part, y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad)

    ranks = run_ranks(world, on_rank)
    slices = [rank.part for rank in ranks]
    for rank in ranks:
        torch.testing.assert_close(rank.output, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(rank.bias_gradient, linear.bias.grad, atol=1e-5, rtol=0)
    gradients = [rank.input_gradient for rank in ranks]
    for gradient in gradients if split_input else [joined(slices, gradients, dim=1)]:
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)
    weight_gradient = joined(slices, [rank.weight_gradient for rank in ranks], dim=1)
    torch.testing.assert_close(weight_gradient, linear.weight.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("world", WORLDS)
def test_without_gradients_the_same_numbers_come_out(world: int) -> None:
    linear = a_linear(7, 10, bias=True)
    x = random(6, 7, seed=7)

    def on_rank(handler: CommunicationHandler) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        column = ColumnParallelLinear(
            7, 10, bias=True, handler=handler, dtype=F32, device=CPU, gather_output=True
        )
        row = RowParallelLinear(7, 10, bias=True, handler=handler, dtype=F32, device=CPU, split_input=True)
        column.load(linear.weight, linear.bias)
        row.load(linear.weight, linear.bias)
        with torch.inference_mode():
            served = column(x), row(x)
        return (*served, column(x).detach(), row(x).detach())

    for served_column, served_row, column, row in run_ranks(world, on_rank):
        assert torch.equal(served_column, column)
        assert torch.equal(served_row, row)
        torch.testing.assert_close(served_column, linear(x).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_gets_the_same_bits_of_a_sum(world: int) -> None:
    x = random(3, 50)

    def on_rank(handler: CommunicationHandler) -> Tensor:
        layer = RowParallelLinear(
            50, 8, bias=False, handler=handler, dtype=torch.bfloat16, device=CPU, split_input=True
        )
        layer.load(random(8, 50, seed=1).bfloat16())
        with torch.inference_mode():
            y: Tensor = layer(x.bfloat16())
            return y

    outputs = run_ranks(world, on_rank)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_parts_that_do_not_make_the_whole_are_refused() -> None:
    def on_rank(handler: CommunicationHandler) -> None:
        part = even_slice(8, handler.rank, handler.world_size)
        with pytest.raises(ValueError, match=r"parts of \[8\] features don't make 9"):
            ColumnParallelLinear(4, 9, bias=False, handler=handler, dtype=F32, device=CPU, parts=(part,))
        with pytest.raises(ValueError, match="can't be gathered"):
            ColumnParallelLinear(
                4,
                16,
                bias=False,
                handler=handler,
                dtype=F32,
                device=CPU,
                parts=(part, part),
                gather_output=True,
            )

    run_ranks(2, on_rank)


def test_a_weight_of_another_size_is_refused() -> None:
    def on_rank(handler: CommunicationHandler) -> None:
        layer = RowParallelLinear(8, 4, bias=False, handler=handler, dtype=F32, device=CPU)
        with pytest.raises(ValueError, match="expected 8 features in dimension 1"):
            layer.load(torch.zeros(4, 9))
        with pytest.raises(ValueError, match="no such parameter"):
            layer.load(torch.zeros(4, 8), torch.zeros(4))

    run_ranks(2, on_rank)
