"""The sum over ranks as this project defines it, in torch: the reference for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF_DTYPES = (torch.bfloat16, torch.float16)


def ordered_sum(rows: Tensor, out: Tensor) -> None:
    """rows [world, *S] → out [*S] = ((rows[0] + rows[1]) + rows[2]) + …

    Half precisions are accumulated in float32 and rounded once. `out` may be one of the rows.
    """
    total = rows[0].float() if rows.dtype in _HALF_DTYPES else rows[0].clone()
    for row in rows[1:]:
        total.add_(row)
    out.copy_(total)
