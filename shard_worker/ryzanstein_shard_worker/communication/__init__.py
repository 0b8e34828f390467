"""The collective operations of one tensor-parallel group, over shared memory, gloo or NCCL."""

from .errors import CommunicationError
from .handler import CommunicationHandler, LastOperation
from .profiler import CommunicationProfiler
from .rebindable import RebindableHandler
from .single import SingleHandler
from .step_channel import StepChannel
from .unbound import UnboundHandler

__all__ = [
    "CommunicationError",
    "CommunicationHandler",
    "CommunicationProfiler",
    "LastOperation",
    "RebindableHandler",
    "SingleHandler",
    "StepChannel",
    "UnboundHandler",
]
