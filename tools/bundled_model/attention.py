"""Attention for training on a CPU, where torch's own is slow to differentiate in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "bundled_model_training"
# Up to here the whole matrix of scores in bfloat16 is faster than torch's blockwise kernel.
_LONGEST_FULL_MATRIX = 256


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """The signature that transformers calls: query `[B, H, S, D]`, key and value `[B, KV, S, D]`.

    `attention_mask` `[B, 1, S, S]` is added to the scores. Returns `[B, S, H, D]`.
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)  # [B, H, S, D]
    value = value.repeat_interleave(groups, dim=1)
    if query.shape[2] <= _LONGEST_FULL_MATRIX:
        scores = (query * scaling) @ key.transpose(2, 3) + attention_mask  # [B, H, S, S]
        mixed = scores.softmax(-1).to(value.dtype) @ value
    else:
        with torch.autocast("cpu", enabled=False):
            mixed = nn.functional.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=attention_mask, scale=scaling
            )
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
