"""Whether the Triton kernels for norms, rotations and the gate serve on a device: they are there and right."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

import structlog
import torch
from torch.nn import functional

from ..memory_errors import is_out_of_memory

if TYPE_CHECKING:
    from .triton_elementwise import TritonElementwise

log = structlog.get_logger(__name__)

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@functools.cache
def device_elementwise(dtype: torch.dtype, device: torch.device) -> TritonElementwise | None:
    """The kernels for this device, tried once per process; None: torch's operations, and the log says why."""
    reason = ""
    if dtype not in _TOLERANCE:
        reason = f"not for {dtype}"
    elif importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        reason = "they need a GPU of compute capability 8.0 or more"
    kernels = None
    if not reason:
        kernels, reason = _tried(dtype, device)
    log.info("elementwise_chosen", kernels="torch" if kernels is None else "triton", reason=reason)
    return kernels


def _tried(dtype: torch.dtype, device: torch.device) -> tuple[TritonElementwise | None, str]:
    try:
        from .triton_elementwise import TritonElementwise

        kernels = TritonElementwise()
        worst = worst_error(kernels, dtype, device)
    except torch.AcceleratorError:
        raise  # the device's context is lost
    except Exception as error:  # whatever a compiler raises: torch's operations are still there
        if is_out_of_memory(error):
            raise
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if not worst <= _TOLERANCE[dtype]:
        return None, f"their numbers are wrong by {worst:.2g}"
    return kernels, ""


@torch.inference_mode()
def worst_error(kernels: TritonElementwise, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference from torch's operations in float32, relative to numbers of about one."""
    generator = torch.Generator().manual_seed(5)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device=device, dtype=dtype)

    x, delta, weight, heads = numbers(3, 200), numbers(3, 200), numbers(200), numbers(3, 5, 64)
    total, normed = kernels.add_rms_norm(x, delta, weight, 1e-5)
    angles = numbers(3, 1, 32).float()
    cos = torch.cat([angles.cos(), angles.cos()], -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    turned = heads.clone()
    kernels.rotate_heads(turned, (3, 1), cos, sin)
    expected_turned = heads.float().clone()
    part = expected_turned[:, :4].clone()
    expected_turned[:, :4] = part * cos.float() + part.roll(32, dims=-1) * sin.float()
    gate, up = x.float().chunk(2, -1)
    pairs = (
        (kernels.rms_norm(x, weight, 1e-5), functional.rms_norm(x.float(), (200,), weight.float(), 1e-5)),
        (total, (x + delta).float()),
        (normed, functional.rms_norm((x + delta).float(), (200,), weight.float(), 1e-5)),
        (turned, expected_turned),
        (kernels.swiglu(x), functional.silu(gate) * up),
    )
    return max(
        ((got.float() - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
        for got, expected in pairs
    )
