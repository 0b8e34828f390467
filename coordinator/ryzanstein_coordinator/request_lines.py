"""One log line for every admitted request, when it ends: what it was, how it ended, how long it took."""

from __future__ import annotations

import structlog

from .requests import RequestRecord

_log = structlog.get_logger("ryzanstein_coordinator.requests")

#: What is nobody's fault, or its sender's own.
_EXPECTED = ("stop", "length", "cancelled", "deadline")


def log_ended(record: RequestRecord, *, epoch: int, now: float) -> None:
    """Seconds count from the admission. What was refused is counted in the metrics, not logged: a flood of requests
    must not become a flood of lines."""
    ending, timings = record.ending, record.timings
    assert ending is not None
    (_log.info if ending.outcome in _EXPECTED else _log.warning)(
        "request",
        **record.log_fields | {"request_id": record.spec.request_id},
        epoch=epoch,
        outcome=ending.outcome,
        owner=record.spec.owner or None,
        prompt_tokens=len(record.spec.prompt),
        cached_tokens=record.cached_tokens,
        generated_tokens=len(record.output),
        queue_s=round(timings.queue_s(now), 4),
        first_token_s=round(timings.first_token_s(), 4) if timings.first_token_at is not None else None,
        duration_s=round(timings.total_s(now), 4),
        reason=None if ending.error is None else str(ending.error),
    )
