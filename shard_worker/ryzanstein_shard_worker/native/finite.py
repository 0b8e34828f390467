"""The C test for NaN and infinity."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from torch import Tensor

from .library import load_library
from .shared_memory import DTYPES


def native_non_finite(tensor: Tensor) -> bool | None:
    """Whether a contiguous CPU tensor [*S] holds NaN or infinity; None: it can't be told this way."""
    function = _function()
    dtype = DTYPES.get(tensor.dtype)
    if function is None or dtype is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return bool(function(tensor.data_ptr(), tensor.numel(), dtype))


@functools.cache
def _function() -> Any:
    library = load_library()
    if library is None:
        return None
    library.rz_non_finite.restype = ctypes.c_int
    library.rz_non_finite.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32]
    return library.rz_non_finite
