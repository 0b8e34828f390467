"""Embedding and head over ranks equal the undivided ones, also when the vocabulary does not divide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.parallel import FeatureSlice, ParallelEmbedding, VocabularyParallelHead
from tests.ranks import run_ranks

from .joining import CPU, F32, joined, random

VOCABULARY, DIM = 11, 6  # over 4 ranks: 3, 3, 3 and 2 rows


def an_embedding(
    handler: CommunicationHandler, weight: Tensor, padding_idx: int | None = None
) -> ParallelEmbedding:
    embedding = ParallelEmbedding(
        *weight.shape, handler=handler, dtype=weight.dtype, device=CPU, padding_idx=padding_idx
    )
    embedding.load(weight)
    return embedding


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_an_embedding_looks_up_what_the_whole_one_does(world: int, padding_idx: int | None) -> None:
    weight = random(VOCABULARY, DIM).requires_grad_()
    token_ids = torch.tensor([[0, 10, 4], [4, 3, 9]])
    upstream = random(2, 3, DIM, seed=1)
    expected = functional.embedding(token_ids, weight, padding_idx)
    torch.autograd.backward(expected, upstream)

    def on_rank(handler: CommunicationHandler) -> tuple[FeatureSlice, Tensor, Tensor, Tensor | None]:
        embedding = an_embedding(handler, weight.detach(), padding_idx)
        with torch.inference_mode():
            served = embedding(token_ids)
        vectors = embedding(token_ids)
        vectors.backward(upstream)
        return embedding.part, served, vectors.detach(), embedding.weight.grad

    ranks = run_ranks(world, on_rank)
    for _, served, vectors, _ in ranks:
        assert torch.equal(vectors, expected)
        assert torch.equal(served, expected)
    gradient = joined([rank[0] for rank in ranks], [rank[3] for rank in ranks])
    assert weight.grad is not None
    assert torch.equal(gradient, weight.grad)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_gives_every_rank_all_logits_and_no_padding(world: int, rows: int, tied: bool) -> None:
    weight = random(VOCABULARY, DIM).requires_grad_()
    hidden = random(rows, DIM, seed=2).requires_grad_()
    upstream = random(rows, VOCABULARY, seed=3)
    expected = functional.linear(hidden, weight)
    torch.autograd.backward(expected, upstream)

    def on_rank(
        handler: CommunicationHandler,
    ) -> tuple[FeatureSlice, Tensor, Tensor, Tensor | None, Tensor | None]:
        embedding = an_embedding(handler, weight.detach() if tied else torch.zeros(VOCABULARY, DIM))
        head = VocabularyParallelHead(embedding, tied=tied, dtype=F32, device=CPU)
        head.load(weight.detach())
        with torch.inference_mode():
            served = head(hidden.detach())
        leaf = hidden.detach().requires_grad_()
        logits = head(leaf)
        logits.backward(upstream)
        return head.part, served, logits.detach(), head.trainable_weight().grad, leaf.grad

    ranks = run_ranks(world, on_rank)
    for _, served, logits, _, hidden_gradient in ranks:
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(served, logits)
        assert served.shape == (rows, VOCABULARY)
        torch.testing.assert_close(hidden_gradient, hidden.grad, atol=1e-5, rtol=0)
    gradient = joined([rank[0] for rank in ranks], [rank[3] for rank in ranks])
    torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=0)


def test_logits_are_float32_whatever_the_weights_are() -> None:
    def on_rank(handler: CommunicationHandler) -> Tensor:
        embedding = an_embedding(handler, random(VOCABULARY, DIM).bfloat16())
        head = VocabularyParallelHead(embedding, tied=True, dtype=torch.bfloat16, device=CPU)
        with torch.inference_mode():
            logits: Tensor = head(random(4, DIM, seed=2).bfloat16())
            return logits

    outputs = run_ranks(3, on_rank)
    assert all(output.dtype == F32 for output in outputs)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
