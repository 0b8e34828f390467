"""What the request path tells others while it works: numbers for metrics, signals for the orchestrator.

The request path calls these from the event loop, between two steps: an implementation must return at once
and must not raise.
"""

from __future__ import annotations

from typing import Protocol

from ryzanstein.v1.shard_worker_pb2 import SchedulerStats

#: Every value that `request_ended` may name, so that all series exist from the start.
OUTCOMES = (
    "stop",  # an end-of-sequence id, a stop id or a stop text
    "length",  # max_tokens or the model's length limit
    "cancelled",  # by Cancel, or because the client went away
    "deadline",
    "unavailable",  # no group served for longer than the grace period
    "error",  # the engine could not go on with it
    "refused",  # never admitted: the queue is full, the deadline can't be met, or the server drains
    "invalid",  # never admitted: the request itself is wrong
)


class RequestMetrics(Protocol):
    """Counts and times of requests. All durations are seconds."""

    def request_ended(self, outcome: str, duration_s: float) -> None:
        """Once per request, refused ones too, when it is sure that it does not go on; `outcome` is one of OUTCOMES."""

    def request_queued(self, seconds: float) -> None:
        """How long an admitted request waited before it was submitted to a group the first time."""

    def first_token(self, seconds: float) -> None:
        """From admission to the first token."""

    def inter_token_latency(self, seconds: float, count: int) -> None:
        """`count` streams each waited `seconds` for their next token. Aggregated: called a few times per
        step."""

    def prompt_tokens(self, count: int) -> None:
        """Tokens of admitted prompts."""

    def generated_tokens(self, count: int) -> None:
        """Tokens recorded; replays after a fault don't count."""

    def step(self, group_id: str, stats: SchedulerStats, step_duration_s: float) -> None:
        """The leader's own account of a step that brought a message. No duration: nothing was computed in it."""


class GroupEvents(Protocol):
    """What the router notices about a group; the orchestrator decides what it means."""

    def stream_broken(self, group_id: str, epoch: int, reason: str) -> None:
        """The Execute stream of a group that should serve ended. The router opens it again until it is told
        `group_lost`."""

    def stream_alive(self, group_id: str, epoch: int, *, flows: bool = False) -> None:
        """The leader has taken the stream that is open now; a second time, with `flows`: its first tokens came."""

    def resumed_gone(self, group_id: str, epoch: int) -> None:
        """Every request that was submitted again when the group became ready has ended, and there was no token of
        this epoch yet."""

    def first_token_after_ready(self, group_id: str, epoch: int, now_s: float) -> None:
        """The first token since `group_ready` of this epoch, at `now_s` of the router's clock."""


class NoMetrics:
    """Counts nothing: for tools and tests that look at results only."""

    def request_ended(self, outcome: str, duration_s: float) -> None: ...
    def request_queued(self, seconds: float) -> None: ...
    def first_token(self, seconds: float) -> None: ...
    def inter_token_latency(self, seconds: float, count: int) -> None: ...
    def prompt_tokens(self, count: int) -> None: ...
    def generated_tokens(self, count: int) -> None: ...
    def step(self, group_id: str, stats: SchedulerStats, step_duration_s: float) -> None: ...


class NoGroupEvents:
    """For a router without an orchestrator."""

    def stream_broken(self, group_id: str, epoch: int, reason: str) -> None: ...
    def stream_alive(self, group_id: str, epoch: int, *, flows: bool = False) -> None: ...
    def resumed_gone(self, group_id: str, epoch: int) -> None: ...
    def first_token_after_ready(self, group_id: str, epoch: int, now_s: float) -> None: ...
