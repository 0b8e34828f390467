"""The two ends of the vocabulary: token ids to vectors, vectors to logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..communication import CommunicationHandler
from .autograd import copy_to_ranks, gather_features, sum_over_ranks
from .feature_slice import even_slice
from .layer import TensorParallelLayer, empty_parameter, fill
from .packable import PackableLinear


class ParallelEmbedding(TensorParallelLayer):
    """The vocabulary is split: ids [..] → vectors [.., dim], the same on every rank.

    Each rank looks up the ids that it holds, has zeros for the others, and the ranks sum: exact, because only
    one of the terms is not zero. Ids must lie in the vocabulary; an id outside of it gives zeros, or an
    IndexError with one rank.

    Args:
        num_embeddings: size of the vocabulary; each rank holds ceil(size / world) rows, padded with zeros.
        embedding_dim: of one vector.
        handler: of the group.
        dtype, device: of the parameter.
        padding_idx: an id whose vector gets no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(handler)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.part = even_slice(num_embeddings, handler.rank, handler.world_size)
        self.weight = empty_parameter(self.part.rows, embedding_dim, dtype=dtype, device=device)
        held = padding_idx is not None and self.part.start <= padding_idx < self.part.stop
        self._padding_row = padding_idx - self.part.start if held and padding_idx is not None else None

    def forward(self, token_ids: Tensor) -> Tensor:
        if self.handler.world_size == 1:
            return functional.embedding(token_ids, self.weight, self._padding_row)
        rows = token_ids - self.part.start
        elsewhere = (rows < 0) | (rows >= self.part.rows)
        vectors = functional.embedding(rows.masked_fill_(elsewhere, 0), self.weight, self._padding_row)
        elsewhere = elsewhere.unsqueeze(-1)
        if torch.is_grad_enabled():
            return sum_over_ranks(vectors.masked_fill(elsewhere, 0), self.handler)
        return sum_over_ranks(vectors.masked_fill_(elsewhere, 0), self.handler)

    def load(self, weight: Tensor) -> None:
        """Takes this rank's rows of the undivided [vocabulary, dim]."""
        fill(self.weight, self.part.cut(weight))


class VocabularyParallelHead(PackableLinear):
    """The vocabulary is split: hidden [R, dim] → logits [R, vocabulary], float32, the same on every rank.

    Args:
        embedding: gives sizes and the split; where `tied`, the weight too.
        tied: the embedding's weight is also the head's. Packed, it is held twice: lookups need the plain one.
        dtype, device: of the parameter.
    """

    def __init__(
        self, embedding: ParallelEmbedding, *, tied: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = embedding.weight.shape
        weight = None if tied else empty_parameter(*shape, dtype=dtype, device=device)
        super().__init__(embedding.handler, weight, None)
        self.num_embeddings = embedding.num_embeddings
        self.part = embedding.part
        self.tied = tied
        self._embedding = (embedding,)  # in a tuple: it is not a part of this module

    def forward(self, hidden: Tensor) -> Tensor:
        handler, size = self.handler, self.num_embeddings
        if torch.is_grad_enabled():
            local = functional.linear(copy_to_ranks(hidden, handler), self.trainable_weight())
            return gather_features(local, size, handler).float()
        local = self.multiply(hidden, None)
        if handler.world_size == 1:
            return local.float()
        parts = handler.all_gather(local)  # [world, R, rows]
        if len(hidden) == 1:
            return parts.view(1, -1)[:, :size].float()
        # One pass: transposed and widened on the way.
        logits = torch.empty(
            (len(hidden), handler.world_size, self.part.rows), dtype=torch.float32, device=hidden.device
        )
        logits.copy_(parts.transpose(0, 1))
        return logits.view(len(hidden), -1)[:, :size]

    def trainable_weight(self) -> Tensor:
        return self._embedding[0].weight if self.tied else super().trainable_weight()

    def load(self, weight: Tensor) -> None:
        """Takes this rank's rows of the undivided [vocabulary, dim]; where tied, the embedding has them."""
        if not self.tied:
            fill(self.weight, self.part.cut(weight))
