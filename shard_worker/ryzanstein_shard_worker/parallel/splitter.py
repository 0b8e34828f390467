"""Makes the parallel counterpart of a module's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..communication import CommunicationHandler
from .embedding import ParallelEmbedding
from .feature_slice import FeatureSlice, even_slice, head_slice
from .linear import ColumnParallelLinear, RowParallelLinear
from .plan import PlanError, Style

_COLUMN = (Style.COLUMN, Style.COLUMN_GATHERED, Style.COLUMN_PACKED)
_ROW = (Style.ROW, Style.ROW_SPLIT_INPUT)
_READS_PAST_FORWARD = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

_Layer = TypeVar("_Layer", bound=nn.Module)


class Splitter:
    """Makes one rank's replacements; collects what has to change around them when all are made."""

    def __init__(self, handler: CommunicationHandler) -> None:
        self._handler = handler
        self._made: dict[int, nn.Module] = {}  # a module may stand in two places
        self._hooked: set[int] = set()
        self._later: list[Callable[[], None]] = []

    @torch.no_grad()
    def replacement(self, name: str, style: Style, part: nn.Module, parent: nn.Module) -> nn.Module:
        """The rank's slice of `part`, or `part` itself where the style splits nothing.

        Raises:
            PlanError: the style does not fit the part, or it can't be split over so many ranks.
        """
        if id(part) not in self._made:
            self._made[id(part)] = self._make(name, style, part, parent)
        return self._made[id(part)]

    def divided(self, name: str, value: int) -> int:
        """An attribute that counts what is split."""
        if value % self._handler.world_size:
            raise PlanError(f"{name}: {value} can't be divided by {self._handler.world_size} ranks")
        return value // self._handler.world_size

    def finish(self) -> None:
        """Adapts the parts around the replaced ones."""
        for change in self._later:
            change()

    def _make(self, name: str, style: Style, part: nn.Module, parent: nn.Module) -> nn.Module:
        if isinstance(parent, _READS_PAST_FORWARD):
            raise PlanError(
                f"{name}: torch's {type(parent).__name__} reads the weights of its parts past their forward; "
                "it can't be split, a block of plain Linear layers can"
            )
        if style is Style.GRADIENT_SUM:
            self._sum_gradients(part)
            return part
        if style is Style.REPLICATE:
            return part
        if style is Style.EMBEDDING and type(part) is nn.Embedding:
            return self._embedding(name, part)
        if style in _COLUMN and type(part) is nn.Linear:
            return self._column(name, style, part, parent)
        if style in _ROW and type(part) is nn.Linear:
            return self._row(name, style, part, parent)
        wanted = "Embedding" if style is Style.EMBEDDING else "Linear"
        raise PlanError(
            f"{name}: the style {style.value!r} splits torch.nn.{wanted}, not {type(part).__name__}"
        )

    def _sum_gradients(self, part: nn.Module) -> None:
        def summed(gradient: Tensor) -> Tensor:
            return self._handler.all_reduce(gradient.clone())

        for parameter in part.parameters():
            if parameter.requires_grad and id(parameter) not in self._hooked:
                self._hooked.add(id(parameter))
                parameter.register_hook(summed)  # type: ignore[no-untyped-call]

    def _embedding(self, name: str, embedding: nn.Embedding) -> nn.Module:
        if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
            raise PlanError(f"{name}: max_norm, scale_grad_by_freq and sparse don't survive splitting")
        layer = ParallelEmbedding(
            embedding.num_embeddings,
            embedding.embedding_dim,
            handler=self._handler,
            dtype=embedding.weight.dtype,
            device=embedding.weight.device,
            padding_idx=embedding.padding_idx,
        )
        layer.load(embedding.weight)
        return _like(embedding, layer)

    def _column(self, name: str, style: Style, linear: nn.Linear, parent: nn.Module) -> nn.Module:
        rank, world = self._handler.rank, self._handler.world_size
        parts: tuple[FeatureSlice, ...] | None = None
        heads = _heads(linear.out_features, parent)
        if style is Style.COLUMN_PACKED:
            if linear.out_features % 2:
                raise PlanError(f"{name}: {linear.out_features} features aren't two projections of one size")
            parts = (even_slice(linear.out_features // 2, rank, world),) * 2
        elif style is Style.COLUMN and heads:
            if heads % world:
                self._share_heads(name, heads, parent)
            parts = (head_slice(heads, linear.out_features // heads, rank, world),)
        layer = ColumnParallelLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            handler=self._handler,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
            gather_output=style is Style.COLUMN_GATHERED,
            parts=parts,
        )
        layer.load(linear.weight, linear.bias)
        return _like(linear, layer)

    def _share_heads(self, name: str, heads: int, parent: nn.Module) -> None:
        """Fewer key-value heads than ranks: neighbours hold the same one, for fewer query heads each."""
        world = self._handler.world_size
        groups = getattr(parent, "num_key_value_groups", None)
        if not isinstance(groups, int) or groups == 1 or world % heads or heads * groups % world:
            raise PlanError(f"{name}: {heads} heads can't be split over {world} ranks, nor shared by them")
        self._later.append(lambda: setattr(parent, "num_key_value_groups", heads * groups // world))

    def _row(self, name: str, style: Style, linear: nn.Linear, parent: nn.Module) -> nn.Module:
        world = self._handler.world_size
        heads = _heads(linear.in_features, parent)
        if style is Style.ROW and heads % world:
            raise PlanError(f"{name}: {heads} heads can't be split over {world} ranks")
        layer = RowParallelLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            handler=self._handler,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
            split_input=style is Style.ROW_SPLIT_INPUT,
        )
        layer.load(linear.weight, linear.bias)
        return _like(linear, layer)


def _heads(features: int, parent: nn.Module) -> int:
    """How many heads a projection of an attention has; 0: it is none, as far as one can see."""
    head_dim = getattr(parent, "head_dim", None)
    if not isinstance(head_dim, int) or head_dim < 1 or features % head_dim:
        return 0
    return features // head_dim


def _like(original: nn.Module, layer: _Layer) -> _Layer:
    """In the same mode, and as trainable."""
    layer.train(original.training)
    for name, parameter in original.named_parameters():
        layer.get_parameter(name).requires_grad_(parameter.requires_grad)
    return layer
