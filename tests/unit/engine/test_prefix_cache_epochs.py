"""A new epoch begins with an empty cache: a rank that was replaced has no pages, and all must share the same blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ryzanstein.v1 import shard_worker_pb2

from .sequences import submission
from .test_engine import LIMITS, Worker, join_request, load_request, wait_until

PROMPT = list(range(10, 45))  # two blocks of 16 and three tokens


@pytest.fixture
def leader() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.on_change = lambda: None
    worker.engine.close()
    worker.groups.close()


def cached_tokens(leader: Worker, sequence_id: int) -> int:
    """Of a sequence with the prompt, when it has its first token; returns when it has ended."""
    seen: list[shard_worker_pb2.SequenceOutput] = []
    leader.on_step = lambda response: seen.extend(
        output for output in response.outputs if output.sequence_id == sequence_id
    )
    inbox = leader.engine.inbox
    assert inbox is not None
    inbox.submit(submission(sequence_id, PROMPT, max_tokens=3))
    wait_until(lambda: bool(seen) and bool(seen[-1].finish_reason))
    assert [output.cached_tokens for output in seen[1:]] == [0, 0], "told once, with the first token"
    return seen[0].cached_tokens


@pytest.mark.parametrize(("caching", "again"), [(True, 32), (False, 0)])
def test_what_is_found_was_computed_in_the_same_epoch(leader: Worker, caching: bool, again: int) -> None:
    leader.engine.load(load_request()).result(30)
    for epoch in (1, 2):
        request = join_request(epoch)
        request.limits.CopyFrom(LIMITS)
        request.limits.prefix_caching = caching
        request.limits.max_decode_slowdown = 1.7
        leader.engine.join(request).result(30)
        leader.wait_for("serving")
        assert cached_tokens(leader, 2 * epoch) == 0
        assert cached_tokens(leader, 2 * epoch + 1) == again
        leader.engine.abort("the epoch is over")
