"""Whether the Triton kernel that rounds rows to 8-bit floats serves on a device: it is there and right."""

from __future__ import annotations

import functools
import importlib.util
import math

import structlog
import torch
from torch import Tensor

from ..memory_errors import is_out_of_memory
from ..parallel.fp8_rows import LARGEST, RowRounding

log = structlog.get_logger(__name__)

#: Half of the distance between neighbours: relative to a float of 4 significant bits, and below the normal ones.
_HALF_STEP, _LEAST_HALF_STEP = 2.0**-4, 2.0**-10


@functools.cache
def device_rounding(dtype: torch.dtype, device: torch.device) -> RowRounding | None:
    """The kernel for this device, tried once per process; None: torch's operations, and the log says why."""
    kernel, reason = None, ""
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    else:
        try:
            from .triton_fp8 import round_rows_by_triton

            worst = worst_error(round_rows_by_triton, dtype, device)
            kernel = round_rows_by_triton if worst <= 1.001 else None
            reason = "" if kernel is not None else f"its numbers are wrong by {worst:.2g} half steps"
        except torch.AcceleratorError:
            raise  # the device's context is lost
        except Exception as error:  # whatever a compiler raises: torch's operations are still there
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    log.info("fp8_rounding_chosen", kernel="torch" if kernel is None else "triton", reason=reason)
    return kernel


@torch.inference_mode()
def worst_error(rounding: RowRounding, dtype: torch.dtype, device: torch.device) -> float:
    """The largest distance of a float from what it stands for, in half steps: 1 or less if all are the nearest.
    Infinite if padding, zeros or what is not finite are treated wrongly."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((6, 200), generator=generator)
    x[1] *= 1000
    x[2] = 0
    x[3, 7], x[4, 11] = math.inf, math.nan
    x = x.to(dtype)
    floats, scales = (part.cpu() for part in rounding(x.to(device)))
    values, scales = floats.float(), scales.double()
    if scales.isnan().flatten().tolist() != [False, False, False, True, True, False]:
        return math.inf
    if values.shape != (6, 208) or values[[0, 1, 2, 5], 200:].any() or values[2].any():
        return math.inf
    if values[[0, 1, 5]].abs().amax(dim=1).ne(LARGEST).any():
        return math.inf
    return max(_half_steps(x[row].double() / scales[row], values[row, :200].double()) for row in (0, 1, 5))


def _half_steps(wanted: Tensor, given: Tensor) -> float:
    return float(((given - wanted).abs() / (wanted.abs() * _HALF_STEP).clamp(min=_LEAST_HALF_STEP)).max())
