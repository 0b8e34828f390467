"""Rotary position embeddings (Su et al., arXiv:2104.09864), with the scalings that checkpoints use."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ryzanstein.model_plan import RopeScaling


class Rotation(NamedTuple):
    """The turns of one batch's rows, used by every layer."""

    cos: Tensor  #: [T, 1, d]
    sin: Tensor  #: [T, 1, d], negative in the first half of d


class RotaryEmbedding(nn.Module):
    """Tables of cos and sin by position, as transformers computes them: in float32, then rounded to `dtype`.

    Pairs are (i, i + d/2), the order of Hugging Face's checkpoints.

    Args:
        head_dim: d.
        theta: base of the frequencies.
        scaling: how they are changed for long contexts; None: not.
        max_positions: rows of the table, [max_positions, d] in `dtype`. A position beyond is an IndexError.
        dtype, device: of the activations.
    """

    table: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        theta: float,
        scaling: RopeScaling | None,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        frequencies = inverse_frequencies(head_dim, theta, scaling)
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies  # [P, d/2]
        factor = 1.0 if scaling is None else scaling.attention_factor
        table = torch.cat([angles.cos() * factor, angles.sin() * factor], dim=-1)
        self.register_buffer("table", table.to(device=device, dtype=dtype), persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """positions [T] → the turns of these rows."""
        cos, sin = self.table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, d/2] each
        return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the heads x [T, h, d] of every row by its position."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin)


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """[d/2] float32: radians per position of each pair; `RopeScaling` tells what each kind does."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn(head_dim, theta, scaling)
    raise ValueError(f"unknown rotary scaling {scaling.kind!r}")


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow turns divided by the factor, fast ones kept, a linear blend between (Llama 3.1's reference code)."""
    rotations = scaling.original_max_position_embeddings / (2 * math.pi / frequencies)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    slow = rotations < scaling.low_freq_factor
    fast = rotations > scaling.high_freq_factor
    return torch.where(slow, frequencies / scaling.factor, torch.where(fast, frequencies, blended))


def _yarn(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN's interpolation by parts (Peng et al., arXiv:2309.00071, section 3.2)."""

    def dimension_of(rotations: float) -> float:
        """The pair that makes so many rotations over the original context."""
        length = scaling.original_max_position_embeddings
        return head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept
