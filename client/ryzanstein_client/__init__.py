"""The client library of Ryzanstein.

    from ryzanstein_client import Client

    with Client("127.0.0.1:50051") as client:
        for chunk in client.stream("The sky is", max_tokens=64, temperature=0.8, seed=7):
            print(chunk.text, end="")
        completion = client.generate("2+2=", max_tokens=4)

`AsyncClient` has the same methods for asyncio. Both go on after a broken connection or a restarted
coordinator: each token is delivered exactly once, in order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .aio_stream import AsyncCompletionStream
    from .errors import (
        AlreadyExists,
        Cancelled,
        DeadlineExceeded,
        Disconnected,
        FailedPrecondition,
        InternalError,
        InvalidRequest,
        NotFound,
        PermissionDenied,
        QueueFull,
        RyzansteinError,
        Unauthenticated,
        Unavailable,
    )
    from .sync import Client
    from .sync_stream import CompletionStream
    from .types import (
        Chunk,
        Completion,
        Message,
        Model,
        SamplingParams,
        Timings,
        TokenLogprob,
        TopLogprob,
        Usage,
    )

__all__ = [
    "AsyncClient",
    "Client",
    "AsyncCompletionStream",
    "CompletionStream",
    "SamplingParams",
    "Message",
    "Chunk",
    "Completion",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
    "Timings",
    "Model",
    "RyzansteinError",
    "InvalidRequest",
    "Unauthenticated",
    "PermissionDenied",
    "NotFound",
    "AlreadyExists",
    "FailedPrecondition",
    "QueueFull",
    "DeadlineExceeded",
    "Cancelled",
    "Unavailable",
    "Disconnected",
    "InternalError",
]

#: Where each name is that is not an error or a type. Modules are imported when they are asked for first: the command
#: line is in this package, too, and `ryzanstein serve` would wait for gRPC's import before it starts anything.
_HOMES = {
    "AsyncClient": "aio",
    "AsyncCompletionStream": "aio_stream",
    "Client": "sync",
    "CompletionStream": "sync_stream",
}
#: Those that readers are sent to by name.
_MODULES = frozenset(("aio", "errors", "sync", "types"))
_TYPES = frozenset(
    (
        "Chunk",
        "Completion",
        "Message",
        "Model",
        "SamplingParams",
        "Timings",
        "TokenLogprob",
        "TopLogprob",
        "Usage",
    )
)

if not TYPE_CHECKING:  # else every name would be one of this module's

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return importlib.import_module(f".{name}", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name, "types" if name in _TYPES else "errors")
        found = getattr(importlib.import_module(f".{home}", __name__), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
