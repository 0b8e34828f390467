from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
import torch

# As colourful trees of every frame's variables, which nobody reads here, tracebacks cost seconds.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two of torch's threads beside other busy processes wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
