"""The C test for NaN and infinity."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from torch import Tensor

from .library import load_library
from .shared_memory import DTYPES

#: Numbers that have a NaN, as the C function knows them.
_FLOATS = {dtype: code for dtype, code in DTYPES.items() if dtype.is_floating_point}


def native_non_finite(tensor: Tensor) -> bool | None:
    """Whether a CPU tensor [*S] holds NaN or infinity; None: it can't be told this way. About a microsecond."""
    function = _function()
    code = _FLOATS.get(tensor.dtype)
    if function is None or code is None or not tensor.is_contiguous():
        return None
    return function(tensor.data_ptr(), tensor.numel(), code) != 0


@functools.cache
def _function() -> Callable[[int, int, int], int] | None:
    library = load_library()
    if library is None:
        return None
    function: Callable[[int, int, int], int] = library.rz_non_finite
    library.rz_non_finite.restype = ctypes.c_int
    library.rz_non_finite.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32]
    return function
