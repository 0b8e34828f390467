"""What coordinator, shard workers and client share: the wire protocol and the model plan."""

from __future__ import annotations

__version__ = "0.1.0"

#: Meaning of the messages. A coordinator refuses a worker with another one.
WIRE_VERSION = 1

#: Order and kind of the arithmetic. Ranks of one group must agree, or they would compute different tokens.
NUMERICS_VERSION = 4
