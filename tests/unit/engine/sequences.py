"""Sequences and plans for the tests of the engine's pure parts."""

from __future__ import annotations

from typing import Any

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_shard_worker.sequence import Sequence


def submission(
    sequence_id: int,
    prompt: list[int],
    *,
    emitted: list[int] | None = None,
    priority: int = 0,
    eos: list[int] | None = None,
    salt: bytes = b"",
    **sampling: Any,
) -> shard_worker_pb2.SubmitSequence:
    """What the coordinator would send; greedy unless `sampling` says otherwise."""
    params = {
        "max_tokens": 16,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        **sampling,
    }
    return shard_worker_pb2.SubmitSequence(
        sequence_id=sequence_id,
        request_id=f"request-{sequence_id}",
        prompt_token_ids=prompt,
        emitted_token_ids=emitted or [],
        priority=priority,
        eos_token_ids=eos or [],
        cache_salt=salt,
        sampling=sampling_pb2.SamplingParams(**params),
    )


def sequence(prompt: list[int] | None = None, **sampling: Any) -> Sequence:
    return Sequence.from_wire(submission(1, prompt or [1, 2, 3], **sampling))
