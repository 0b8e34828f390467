"""Collective operations inside of a computation whose gradient is taken.

Each function is one of the conjugate pairs of Megatron-LM (Shoeybi et al., https://arxiv.org/abs/1909.08053,
section 3: the operators f and g): what is an identity forward is a sum over ranks backward, and the other way
round. The loss, and with it every gradient of a replicated activation, is the same on all ranks.

Where gradients are off (`torch.no_grad`, `torch.inference_mode`) nothing is recorded, and sums happen in the
memory of the argument.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..communication import CommunicationHandler
from .feature_slice import even_slice


def copy_to_ranks(x: Tensor, handler: CommunicationHandler) -> Tensor:
    """A replicated tensor enters a split computation. Forward: identity. Backward: sum over ranks."""
    if handler.world_size == 1 or not torch.is_grad_enabled():
        return x
    return _CopyToRanks.apply(x, handler)  # type: ignore[no-any-return, no-untyped-call]


def sum_over_ranks(x: Tensor, handler: CommunicationHandler) -> Tensor:
    """Partial results become the whole. Forward: sum over ranks. Backward: identity.

    Without gradients `x` itself is overwritten, so it must be a fresh tensor.
    """
    if handler.world_size == 1:
        return x
    if not torch.is_grad_enabled():
        return handler.all_reduce(x)
    return _SumOverRanks.apply(x, handler)  # type: ignore[no-any-return, no-untyped-call]


def gather_features(x: Tensor, size: int, handler: CommunicationHandler) -> Tensor:
    """[.., ceil(size / world)] of every rank → [.., size], padding cut away. Backward: the rank's own part."""
    if handler.world_size == 1:
        return x
    if not torch.is_grad_enabled():
        return _gather(x, size, handler)
    return _GatherFeatures.apply(x, size, handler)  # type: ignore[no-any-return, no-untyped-call]


def split_features(x: Tensor, handler: CommunicationHandler) -> Tensor:
    """Replicated [.., size] → the rank's [.., ceil(size / world)], padded with zeros. Backward: gathered."""
    if handler.world_size == 1:
        return x
    if not torch.is_grad_enabled():
        return _split(x, handler)
    return _SplitFeatures.apply(x, handler)  # type: ignore[no-any-return, no-untyped-call]


def sum_gradient_over_replicas(
    weight: Tensor, first_row: int, replicas: int, handler: CommunicationHandler
) -> Tensor:
    """A weight whose rows from `first_row` on are the same on `replicas` neighbouring ranks.

    Forward: identity. Backward: each of these ranks saw a part of the uses of the shared rows (key and value
    heads that several ranks' query heads read), so their gradients are summed over the replicas.
    """
    if replicas == 1 or not torch.is_grad_enabled():
        return weight
    return _SumGradientOverReplicas.apply(weight, first_row, replicas, handler)  # type: ignore[no-any-return, no-untyped-call]


def _gather(x: Tensor, size: int, handler: CommunicationHandler) -> Tensor:
    parts = handler.all_gather(x)  # [world, .., rows]
    return parts.movedim(0, -2).flatten(-2)[..., :size]


def _split(x: Tensor, handler: CommunicationHandler) -> Tensor:
    part = even_slice(x.shape[-1], handler.rank, handler.world_size)
    held = part.stop - part.start
    return functional.pad(x.narrow(-1, part.start, held), (0, part.rows - held))


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, handler: CommunicationHandler) -> Tensor:
        ctx.handler = handler
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.handler.all_reduce(gradients[0].clone()), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, handler: CommunicationHandler) -> Tensor:
        return handler.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, handler: CommunicationHandler) -> Tensor:
        ctx.handler = handler
        return _gather(x, size, handler)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _split(gradients[0], ctx.handler), None, None


class _SplitFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, handler: CommunicationHandler) -> Tensor:
        ctx.handler, ctx.size = handler, x.shape[-1]
        return _split(x, handler)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gather(gradients[0].contiguous(), ctx.size, ctx.handler), None


class _SumGradientOverReplicas(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, first_row: int, replicas: int, handler: CommunicationHandler
    ) -> Tensor:
        ctx.handler, ctx.first_row, ctx.replicas = handler, first_row, replicas
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        whole = gradients[0].clone()
        shared = whole[ctx.first_row :]
        first = ctx.handler.rank // ctx.replicas * ctx.replicas
        of_all = ctx.handler.all_gather(shared)[first : first + ctx.replicas]  # [replicas, rows, ..]
        # Summed in float32 and in the order of the ranks, as all sums over ranks are.
        shared.copy_(of_all.sum(0, dtype=torch.promote_types(whole.dtype, torch.float32)))
        return whole, None, None, None
