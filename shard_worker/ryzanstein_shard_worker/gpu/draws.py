"""The tokens of all rows at once, on the device, with one read at the end: what `sampling` does row by row on a CPU.

The same numbers decide: top-k, top-p on what is left, min-p against the most probable, equal logits in the order of
their ids, noise from the counter. Where two ways of summing probabilities round differently at the edge of top-p, the
set that is kept may differ by its last id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..philox import philox4x32

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's token is drawn."""

    #: 0: the most probable.
    temperature: float
    #: 0: all.
    top_k: int
    #: 1: all.
    top_p: float
    min_p: float
    seed: int
    choice: int
    position: int


@torch.inference_mode()
def draw_rows(logits: Tensor, draws: Sequence[Draw]) -> tuple[list[bool], list[int]]:
    """Of each row of logits [R, V] float32: whether all of it is finite, and the token that is drawn.

    Waits for the device once, for all rows together.
    """
    tokens = logits.argmax(dim=-1)
    if any(draw.temperature > 0.0 for draw in draws):
        tokens = _drawn(logits, draws, tokens)
    finite = torch.isfinite(logits.sum(dim=-1))  # a sum keeps NaN and infinity
    both = torch.stack([finite.long(), tokens]).cpu()
    return both[0].bool().tolist(), both[1].tolist()


def _drawn(logits: Tensor, draws: Sequence[Draw], greedy: Tensor) -> Tensor:
    device, vocabulary = logits.device, logits.shape[1]
    warm = [draw.temperature > 0.0 for draw in draws]
    cut = [0 < draw.top_k < vocabulary or 0.0 < draw.top_p < 1.0 for draw in draws]
    floats = torch.tensor(
        [
            [draw.temperature if draw.temperature > 0.0 else 1.0 for draw in draws],
            [draw.top_p if 0.0 < draw.top_p < 1.0 else math.inf for draw in draws],
            [math.log(draw.min_p) if draw.min_p > 0.0 else -math.inf for draw in draws],
        ]
    )
    words = torch.tensor(
        [
            [min(draw.top_k, vocabulary) or vocabulary for draw in draws],
            [draw.seed & _MASK for draw in draws],
            [draw.seed >> 32 for draw in draws],
            [draw.choice & _MASK for draw in draws],
            [draw.position & _MASK for draw in draws],
            warm,
        ],
        dtype=torch.int64,
    )
    temperature, top_p, min_p = floats.to(device, non_blocking=True)[:, :, None]  # [R, 1] each
    top_k, seed_low, seed_high, choice, position, is_warm = words.to(device, non_blocking=True)[:, :, None]
    values = logits / temperature
    ids = torch.arange(vocabulary, device=device).expand_as(values)
    if any(cut):
        values, ids = torch.sort(values, dim=-1, descending=True, stable=True)
        rank = torch.arange(vocabulary, device=device)
        kept = rank < top_k
        probabilities = torch.softmax(values.masked_fill(~kept, -math.inf), dim=-1)
        before = probabilities.cumsum(-1) - probabilities  # mass of all that are more probable
        kept &= (before < top_p) | (rank == 0)
        kept &= values >= values[:, :1] + min_p
    else:
        kept = values >= values.amax(-1, keepdim=True) + min_p
    uniform = _uniform(ids, seed_low, seed_high, choice, position)
    noise = -torch.log(-torch.log(uniform)).to(torch.float32)
    best = (values + noise).masked_fill(~kept, -math.inf).argmax(-1, keepdim=True)
    return torch.where(is_warm[:, 0] > 0, ids.gather(-1, best)[:, 0], greedy)


def _uniform(ids: Tensor, seed_low: Tensor, seed_high: Tensor, choice: Tensor, position: Tensor) -> Tensor:
    """As `philox.gumbel_noise` has them: [R, K] float64 in (0, 1)."""
    zero = torch.zeros_like(position)
    words = philox4x32((ids, position, choice, zero), (seed_low, seed_high))
    return ((words[0] >> 8).to(torch.float64) + 0.5) * 2.0**-24
