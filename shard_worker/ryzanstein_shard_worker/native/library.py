"""Finds and loads the library of the C parts. Whoever calls it has a way without."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_DIRECTORY = Path(__file__).resolve().parent
_LIBRARY = _DIRECTORY / "_native.so"
_REBUILD = "install again, or run python shard_worker/build_native.py in a checkout"


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it can't be had; the log says why, once per process.

    Calls through it release the interpreter's lock. Functions have to be declared (`argtypes`, `restype`) by
    the module that uses them.
    """
    library, problem = _load(_LIBRARY, _source_digest(_DIRECTORY))
    if library is None:
        log.warning("native_library_missing", reason=problem, effect="torch and gloo are used: slower on CPU")
    return library


def _load(path: Path, expected_digest: str) -> tuple[ctypes.CDLL | None, str]:
    """→ (library, "") or (None, why not)."""
    if not path.exists():
        return None, f"{path} was not built: is there a C compiler? Then {_REBUILD}"
    try:
        library = ctypes.CDLL(str(path))
        library.rz_source_digest.restype = ctypes.c_char_p
        digest = library.rz_source_digest().decode()
    except (OSError, AttributeError) as error:
        return None, f"{path} can't be loaded ({error}): {_REBUILD}"
    if expected_digest and digest != expected_digest:
        return None, f"{path} was built from other sources than lie beside it: {_REBUILD}"
    return library, ""


def _source_digest(directory: Path) -> str:
    """As build_native.py computes it; empty where no sources were installed."""
    paths = sorted([*directory.glob("*.c"), *directory.glob("*.h")])
    if not paths:
        return ""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
