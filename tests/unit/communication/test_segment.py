"""What ranks of one host decide about their shared memory, and the segment itself, in one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from ryzanstein_shard_worker.communication.segment import Ack, waiting_times_us, why_not
from ryzanstein_shard_worker.communication.shared_memory import describe
from ryzanstein_shard_worker.native.shared_memory import (
    Ruling,
    SegmentLayout,
    SharedSegment,
    Verdict,
    shared_memory_available,
)

needs_native_library = pytest.mark.skipif(
    not shared_memory_available(), reason="the native library is not built here"
)


def ack(*cores: int, problem: str = "") -> Ack:
    return Ack(pid=1, cores=cores, native=not problem, problem=problem)


def test_ranks_wait_busily_only_when_each_has_a_core() -> None:
    busy = waiting_times_us([ack(0), ack(1)])
    assert waiting_times_us([ack(0, 1), ack(0, 1)]) == busy
    crowded = waiting_times_us([ack(0, 1), ack(0, 1), ack(0, 1)])
    assert waiting_times_us([ack(1), ack(1)]) == crowded
    assert sum(crowded) < sum(busy) / 10


def test_a_rank_that_could_not_map_the_segment_is_named() -> None:
    assert why_not([ack(0), ack(1)]) == ""
    assert why_not([ack(0), ack(1, problem="no native library")]) == "rank 1: no native library"


@pytest.mark.parametrize(
    ("verdict", "reason", "peer"),
    [
        (Verdict.PEER_DEAD, "the process of rank 2 is gone, as rank 1 saw", 2),
        (Verdict.PEER_LATE, "no answer from rank 2 within 1.5 s, as rank 1 saw", 2),
        (
            Verdict.DIVERGED,
            "rank 2 is in another operation, or has a tensor of another size, as rank 1 saw",
            2,
        ),
        (Verdict.ABORTED, "rank 1 left the group", None),
    ],
)
def test_every_rank_tells_the_same_story(verdict: Verdict, reason: str, peer: int | None) -> None:
    ruling = Ruling(verdict, peer=2, reporter=1)
    assert describe(ruling, 0, 1.5) == (reason, peer)
    assert describe(ruling, 1, 1.5)[0] == reason.removesuffix(", as rank 1 saw")


@pytest.fixture
def segments() -> Iterator[list[SharedSegment]]:
    """Two ranks' mappings of one segment."""
    layout = SegmentLayout(2, slot_bytes=4096, ring_bytes=4096, pair_bytes=4096)
    fd = os.memfd_create("test")
    os.ftruncate(fd, layout.total_bytes())
    mapped = [SharedSegment(fd, rank, layout) for rank in range(2)]
    os.close(fd)
    for segment in mapped:
        segment.tune(timeout_s=5, spin_us=10, yield_us=10)
    yield mapped
    for segment in mapped:
        segment.close()


@needs_native_library
def test_a_segment_of_another_layout_is_refused() -> None:
    layout = SegmentLayout(2, slot_bytes=4096, ring_bytes=4096, pair_bytes=4096)
    fd = os.memfd_create("test")
    os.ftruncate(fd, layout.total_bytes() * 2)
    first = SharedSegment(fd, 0, layout)
    with pytest.raises(OSError, match="it is another group's"):
        SharedSegment(fd, 1, SegmentLayout(3, slot_bytes=4096, ring_bytes=4096, pair_bytes=4096))
    first.close()
    os.close(fd)


@needs_native_library
def test_the_first_ruling_stays(segments: list[SharedSegment]) -> None:
    assert segments[1].ruling().verdict is Verdict.FINE
    segments[0].abort()
    segments[1].abort()
    assert segments[1].ruling() == Ruling(Verdict.ABORTED, peer=0, reporter=0)
    assert not segments[1].barrier()


@needs_native_library
def test_a_sleeping_rank_is_woken_by_a_message_and_by_an_abort(segments: list[SharedSegment]) -> None:
    received: list[bytes | None] = []
    thread = threading.Thread(target=lambda: received.extend(segments[1].ring_receive(5) for _ in range(2)))
    thread.start()
    time.sleep(0.05)  # asleep by now
    assert segments[0].ring_send(b"plan")
    while not received:
        time.sleep(0.001)
    time.sleep(0.05)
    started_at = time.monotonic()
    segments[0].abort()
    thread.join(5)
    assert received == [b"plan", None]
    assert time.monotonic() - started_at < 0.2


@needs_native_library
def test_messages_survive_the_wrap_of_the_rings_counters(segments: list[SharedSegment]) -> None:
    """A prime length meets every offset of the ring, its end included."""
    payloads = [bytes([number % 251]) * 1021 for number in range(1000)]
    received: list[bytes | None] = []
    thread = threading.Thread(target=lambda: received.extend(segments[1].ring_receive(5) for _ in payloads))
    thread.start()
    for payload in payloads:
        assert segments[0].ring_send(payload)
    thread.join(10)
    assert received == payloads


@needs_native_library
def test_a_process_that_does_not_exist_can_not_be_watched(segments: list[SharedSegment]) -> None:
    with pytest.raises(OSError, match=r"rank 1 .* can't be watched"):
        segments[0].watch(1, 2**22 + 1)
