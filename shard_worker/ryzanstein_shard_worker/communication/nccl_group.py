"""How the ranks' devices come together over NCCL.

What torch's defaults would do on a failure (end the process, or hang for ten minutes) is switched off: the handler
has a watch of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import timedelta

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from .attempt import attempt_in_thread
from .nccl import NcclHandler

#: Read by torch when a group is constructed (ProcessGroupNCCL.hpp).
_ENVIRONMENT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # the default, 3, ends the process
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # so does the monitor of the thread that would have ended it
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",  # would look into the store for ever
}
#: How long torch waits for a communicator that is not ready, with a lock that an abort needs; 30 minutes unless said
#: otherwise. Read once per process (NCCLUtils.cpp), so the first group's time holds for all.
_NOT_READY = "TORCH_NCCL_NONBLOCKING_TIMEOUT"


def why_no_nccl() -> str:
    """Why this process can't use NCCL; empty if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not torch.distributed.is_nccl_available():
        return f"torch {torch.__version__} was built without NCCL"
    return ""


def form_nccl_group(
    store: Store,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    timeout_s: float,
    reproducible: bool,
    join_timeout_s: float = 60.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> NcclHandler:
    """Connects the ranks' devices: returns when all have answered.

    Args:
        timeout_s: of every later operation.
        cancelled: asked every few milliseconds: when it says yes the call ends, while the abandoned attempt runs
            into a timeout of its own. Nothing can end it sooner: torch holds a lock that an abort needs.

    Raises:
        RuntimeError, CommunicationError: NCCL refused, or a rank did not come.
        TimeoutError: nothing came of it within `join_timeout_s`.
        InterruptedError: `cancelled` said yes.
    """
    # torch reads them in the constructor; there is no other way to say it.
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault(_NOT_READY, str(math.ceil(join_timeout_s)))
    return attempt_in_thread(
        lambda: _form(store, rank, world_size, device, timeout_s=timeout_s, reproducible=reproducible),
        NcclHandler.close,
        name="nccl-form",
        timeout_s=join_timeout_s,
        cancelled=cancelled,
    )


def _form(
    store: Store,
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    timeout_s: float,
    reproducible: bool,
) -> NcclHandler:
    from torch._C._distributed_c10d import ProcessGroupNCCL  # only in builds with CUDA

    options = ProcessGroupNCCL.Options()
    # Without it a communicator that waits for a missing rank can't be aborted.
    options.config.blocking = 0
    options._timeout = timedelta(seconds=timeout_s)
    with torch.cuda.device(device):
        group = ProcessGroupNCCL(PrefixStore("nccl", store), rank, world_size, options)
        group.eager_connect_single_device(device)
        handler = NcclHandler(
            group,
            rank=rank,
            world_size=world_size,
            timeout_s=timeout_s,
            reproducible=reproducible,
            store=store,
        )
        try:
            handler.barrier()
        except BaseException:
            handler.close()
            raise
    return handler
