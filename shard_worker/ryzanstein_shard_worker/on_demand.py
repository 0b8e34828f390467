"""Parameters whose memory comes when their first slice arrives.

For weights that are rounded while they are loaded: a model that fits into a GPU in 8 bits only must never stand there
as a whole in 16. On a CPU this is the kernel's own way with memory that nobody wrote yet.
"""

from __future__ import annotations

from torch import Tensor, nn


def put_off(module: nn.Module) -> None:
    """Gives back the memory of the module's parameters, whose values are lost; shapes stay."""
    for parameter in module.parameters():
        parameter.untyped_storage().resize_(0)


def is_put_off(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def provide(tensor: Tensor) -> bool:
    """Gives a whole parameter its memory, uninitialised, if that was put off; whether it was."""
    if not is_put_off(tensor):
        return False
    tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
    return True
