"""Snapshots of a cluster in each of its states, and what the page has to say of them in its first line."""

from __future__ import annotations

from typing import Any

from ryzanstein.v1 import operations_pb2
from ryzanstein.wire import to_plain

_CULPRIT = operations_pb2.Culprit(worker_id="w1", rank=1, host="alpha", device="cuda:1", pid=71)
_OPEN = operations_pb2.RecoveryStatus(epoch=2, cause="lease", culprit=_CULPRIT)
_CLOSED = operations_pb2.RecoveryStatus(
    epoch=2, cause="process", culprit=_CULPRIT, reformed_s=0.2, first_token_s=0.25, requests_resumed=2
)
_PLANNED = operations_pb2.RecoveryStatus(epoch=2, cause="drain", culprit=_CULPRIT, reformed_s=0.2)


def _snapshot(
    *states: str, ready: bool, reason: str = "", own: str = "", served_ago_s: float = 7.0, **fields: Any
) -> dict[str, Any]:
    groups = [
        operations_pb2.GroupStatus(id=f"g{number}", state=state, reason=own, tensor_parallel_size=2)
        for number, state in enumerate(states)
    ]
    last = fields.get("last_recovery")
    history = [] if last is None or not last.HasField("reformed_s") else [
        operations_pb2.EpochStatus(epoch=2, recovery=last, served_unix_s=1000.0 - served_ago_s)
    ]  # fmt: skip
    snapshot = operations_pb2.ClusterSnapshot(
        state=states[0],
        groups=groups,
        readiness=operations_pb2.ReadinessStatus(ready=ready, reason=reason),
        requests=operations_pb2.RequestCounts(running=3),
        history=history,
        unix_s=1000.0,
        **fields,
    )
    return to_plain(snapshot)


_LOADING = [
    operations_pb2.WorkerStatus(id=f"w{rank}", state="loading", load_progress=0.4) for rank in range(2)
]

#: What is known, whether the coordinator answers → level, title, and what the rest must hold.
VERDICTS: dict[str, tuple[dict[str, Any] | None, str, str, str, str]] = {
    "nothing came yet": (None, "connecting", "unknown", "Connecting", ""),
    "a key is needed": (None, "locked", "unknown", "Locked", "API key"),
    "nobody is there": (None, "lost", "bad", "The coordinator does not answer", "Nothing has come"),
    "nobody is there any more": (
        _snapshot("serving", ready=True), "lost", "bad", "The coordinator does not answer", "as it was at"
    ),
    "it serves": (_snapshot("serving", ready=True), "open", "ok", "Serving", "3 requests running"),
    "it serves again": (
        _snapshot("serving", ready=True, last_recovery=_CLOSED), "open", "ok", "Serving",
        "7 s ago: w1 (rank 1), its process died. Back after 250 ms; 2 streams went on.",
    ),
    "it has served again for long": (
        _snapshot("serving", ready=True, served_ago_s=900, last_recovery=_CLOSED), "open", "ok", "Serving",
        "3 requests running",
    ),
    "nobody is blamed for what was planned": (
        _snapshot("serving", ready=True, last_recovery=_PLANNED), "open", "ok", "Serving", "3 requests running"
    ),
    "it recovers": (
        _snapshot("recovering", ready=False, last_recovery=_OPEN), "open", "bad", "Not serving: recovering",
        "To blame: w1 (rank 1), stopped answering (host alpha, cuda:1, process 71).",
    ),
    "it loads": (
        _snapshot("loading", ready=False, own="loading 2 ranks", workers=_LOADING), "open", "warn",
        "Not serving yet: loading, 40 %", "Loading 2 ranks",
    ),
    "it forms": (_snapshot("forming", ready=False), "open", "warn", "Not serving yet: forming the group", ""),
    "it waits": (
        _snapshot("waiting", ready=False, own="1 of 2 workers are ready"), "open", "warn",
        "Not serving: waiting for workers", "1 of 2 workers are ready",
    ),
    "it waits for a replacement": (
        _snapshot("waiting", ready=False, last_recovery=_OPEN), "open", "bad",
        "Not serving: waiting for workers", "To blame: w1 (rank 1)",
    ),
    "it stands, but its leader hangs": (
        _snapshot("serving", ready=False, reason="w0 (rank 0) finished no step for 21 s"), "open", "bad",
        "Not serving", "w0 (rank 0) finished no step for 21 s",
    ),
    "fewer ranks": (
        _snapshot("degraded", ready=True, reason="group g0 serves with 1 of 2 ranks", last_recovery=_CLOSED),
        "open", "warn", "Serving with fewer ranks", "Group g0 serves with 1 of 2 ranks",
    ),
    "one group of two": (
        _snapshot("serving", "recovering", ready=True, own="0 of 2 workers", last_recovery=_OPEN), "open", "warn",
        "Serving, but not with every group", "g1 is recovering: 0 of 2 workers",
    ),
    "it stops": (_snapshot("draining", ready=False), "open", "warn", "Stopping", "nothing new is taken"),
}  # fmt: skip
