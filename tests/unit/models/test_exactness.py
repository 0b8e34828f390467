"""A sequence's logits keep their bits, whatever else is in the batch and in whichever chunks it is computed.

Over the KV cache's pages and with packed weights, as in serving.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.models import Decoder
from ryzanstein_shard_worker.native.attention import native_attention
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend
from ryzanstein_shard_worker.parallel import TensorParallelTransformerBlock
from ryzanstein_shard_worker.parallel.packed_weight import can_pack
from tests.checkpoints import Checkpoints
from tests.loaded_models import CPU, load_model
from tests.ranks import run_ranks

BLOCK, BLOCKS_EACH = 16, 8


class PagedModel:
    """A model with pages for some sequences, each with its own blocks."""

    def __init__(self, model: Decoder, sequences: int) -> None:
        self._model = model
        block = model.layers[0]
        assert isinstance(block, TensorParallelTransformerBlock)
        attention = block.attention
        self._pool = KVPool(
            len(model.layers),
            sequences * BLOCKS_EACH,
            attention.num_kv_heads,
            attention.head_dim,
            dtype=model.norm.weight.dtype,
        )

    def step(
        self, pieces: Sequence[tuple[int, Tensor, int]], rows: Sequence[int] | None = None
    ) -> list[Tensor]:
        """(sequence, its new token ids, their first position), ... → logits [n, V] of each piece; or of these rows
        of all pieces, [1, V] each."""
        counts = [len(ids) for _, ids, _ in pieces]
        layout = StepLayout(
            query_start=torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32),
            context_len=torch.tensor([first + len(ids) for _, ids, first in pieces], dtype=torch.int32),
            block_table=torch.tensor(
                [[s * BLOCKS_EACH + b for b in range(BLOCKS_EACH)] for s, _, _ in pieces], dtype=torch.int32
            ),
        )
        attend = make_attend(
            self._pool,
            layout,
            sliding_window=self._model.sliding_windows,
            scale=self._model.attention_scale,
        )
        positions = torch.cat([torch.arange(first, first + len(ids)) for _, ids, first in pieces])
        wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64)
        hidden = self._model(torch.cat([ids for _, ids, _ in pieces]), positions, attend, wanted)
        return list(torch.split(self._model.logits(hidden), 1 if rows is not None else counts))


def token_ids(length: int, seed: int) -> Tensor:
    return torch.randint(0, 331, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {"intermediate_size": 301}), ("qwen3", {"use_sliding_window": True, "sliding_window": 20})],
    ids=["llama", "qwen3"],
)
def test_a_sequence_keeps_its_bits_in_any_company(
    checkpoints: Checkpoints, family: str, overrides: dict[str, object], dtype: str, world: int
) -> None:
    if native_attention() is None or not can_pack(getattr(torch, dtype), CPU):
        pytest.skip(f"this machine has no exact kernels for {dtype}")
    directory = checkpoints(family, **overrides)
    lengths = [70, 33, 1, 18]
    sequences = [token_ids(length, seed) for seed, length in enumerate(lengths)]

    def on_rank(handler: CommunicationHandler) -> None:
        model = load_model(directory, handler, dtype=dtype, pack=True)
        with torch.inference_mode():
            alone = [PagedModel(model, 1).step([(0, ids, 0)])[0] for ids in sequences]
            together = PagedModel(model, 4).step([(s, ids, 0) for s, ids in enumerate(sequences)])
            for expected, got in zip(alone, together, strict=True):
                assert torch.equal(expected, got)
            # The last layer computes what is asked for, and in the first step nothing is.
            paged = PagedModel(model, 4)
            paged.step([(s, ids[:-1], 0) for s, ids in enumerate(sequences) if len(ids) > 1], rows=[])
            pieces = [(s, ids[-1:], len(ids) - 1) for s, ids in enumerate(sequences)]
            for s, logits in zip((3, 0), paged.step(pieces, rows=(3, 0)), strict=True):
                assert torch.equal(alone[s][-1:], logits)
            for chunk in (1, 7, 32):
                paged = PagedModel(model, 4)
                done = [0] * len(sequences)
                seen: list[list[Tensor]] = [[] for _ in sequences]
                while any(at < len(ids) for at, ids in zip(done, sequences, strict=True)):
                    pieces = [
                        (s, ids[done[s] : done[s] + chunk], done[s])
                        for s, ids in enumerate(sequences)
                        if done[s] < len(ids)
                    ]
                    for (s, ids, _), logits in zip(pieces, paged.step(pieces), strict=True):
                        seen[s].append(logits)
                        done[s] += len(ids)
                for expected, parts in zip(alone, seen, strict=True):
                    assert torch.equal(expected, torch.cat(parts)), chunk

    run_ranks(world, on_rank)
