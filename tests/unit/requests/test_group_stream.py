"""The Execute stream over real connections: what is a sign of life, and how soon a dead end is known."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from structlog.testing import capture_logs

from ryzanstein.v1.shard_worker_pb2 import EngineLimits
from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceStub
from ryzanstein.wire import CHANNEL_OPTIONS
from ryzanstein_coordinator import group_stream

from .cluster import RequestPath, eventually, read_all, request_path
from .leader import Leader

#: A dead end is known within a second, also on a busy machine.
SOON_S = 5.0


@pytest.fixture
async def path() -> AsyncIterator[RequestPath]:
    path = request_path()
    yield path
    path.router.close()
    path.intake.close()


@contextlib.asynccontextmanager
async def leading(**settings: object) -> AsyncIterator[Leader]:
    leader = Leader(**settings)  # type: ignore[arg-type]
    await leader.start()
    try:
        yield leader
    finally:
        await leader.close()


async def test_a_leader_without_work_shows_that_it_has_taken_the_stream(path: RequestPath) -> None:
    async with leading(epoch=3) as leader:
        path.serve(leader)
        await eventually(lambda: path.seen.alive == [3])
        assert path.seen.flows == []
        await leader.die()
        await eventually(lambda: path.seen.broken == [("g0", 3)])
        assert path.seen.alive == [3]


async def test_what_is_submitted_does_not_wait_for_the_leaders_answer(path: RequestPath) -> None:
    """One that says nothing before its first step computes all the same."""
    async with leading(answers=False) as leader:
        path.serve(leader)
        tokens, _, _ = await read_all(await path.ask([11, 12], max_tokens=5))
        assert tokens == leader.expected([11, 12], max_tokens=5)


async def test_the_leader_of_another_epoch_has_not_taken_this_ones_stream(path: RequestPath) -> None:
    async with leading(epoch=1) as old:
        path.router.group_ready("g0", 2, old.stub, old.limits)
        await path.ask([11], max_tokens=5)
        await eventually(lambda: old.steps == 5)
        assert path.seen.alive == path.seen.flows == []


async def test_a_stream_on_which_no_sign_of_life_comes_any_more_is_given_up_and_opened_again(
    path: RequestPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets are lost, and TCP tells nobody for ten seconds or more."""
    monkeypatch.setattr(group_stream, "EXECUTE_BEAT_S", 0.01)
    async with leading(budget=3, beats=1) as leader:
        path.serve(leader)
        asked = await path.ask([11], max_tokens=6)
        await eventually(lambda: path.seen.generated == 3)
        with capture_logs() as logs:
            await eventually(lambda: path.seen.broken != [])
        assert [line["reason"] for line in logs if line["event"] == "execute_stream_broken"] == [
            "nothing came for 0.06 s"
        ]
        leader.beats = 0
        leader.allow(None)
        tokens, _, _ = await read_all(asked)
        assert tokens == leader.expected([11], max_tokens=6)
        assert len(path.seen.alive) >= 2
        assert path.seen.flows == [1, 1], "once on each stream that brought tokens"


async def test_steps_are_signs_of_life_too_and_a_leader_that_never_gave_any_is_not_waited_for(
    path: RequestPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_stream, "EXECUTE_BEAT_S", 0.04)
    async with leading(beats=1, step_s=0.01) as leader, leading(epoch=2) as quiet:
        path.serve(leader)
        await read_all(await path.ask([11], max_tokens=60))
        assert path.seen.broken == []
        path.router.group_lost("g0", 1, "test")
        path.serve(quiet)
        await read_all(await path.ask([11], max_tokens=3))
        assert "execute-2-watch" not in {task.get_name() for task in asyncio.all_tasks()}


@pytest.fixture
def dead_end() -> Iterator[str]:
    """An address whose packets are lost: the queue of a listener that takes nobody is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        time.sleep(0.05)  # until the kernel has put them into the queue
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_an_address_whose_packets_are_lost_is_known_soon_and_never_alive(
    path: RequestPath, dead_end: str
) -> None:
    """gRPC's own patience is 20 seconds for each attempt."""
    async with grpc.aio.insecure_channel(dead_end, options=CHANNEL_OPTIONS) as channel:
        begun_at = time.monotonic()
        path.router.group_ready("g0", 1, ShardWorkerServiceStub(channel), EngineLimits(max_num_seqs=4))
        await asyncio.wait_for(eventually(lambda: len(path.seen.broken) >= 2), SOON_S)
        assert time.monotonic() - begun_at > 0.4, "a handshake on a busy machine may take as long"
        assert path.seen.alive == []


async def test_when_nobody_waits_any_more_for_what_was_submitted_again_it_is_said_once(
    path: RequestPath,
) -> None:
    async with leading(epoch=1, budget=2) as first, leading(epoch=2, budget=0) as second:
        path.serve(first)
        asked = [await path.ask([11 + i], request_id=f"r{i}", max_tokens=30) for i in range(2)]
        await eventually(lambda: path.seen.generated == 2)
        path.router.group_lost("g0", 1, "test")
        assert path.serve(second) == 2
        await eventually(lambda: second.running == 2)
        path.front_door.cancel("r0")
        assert path.seen.gone == []
        path.front_door.cancel("r1")
        assert path.seen.gone == [2]
        later = await path.ask([30], max_tokens=3)
        second.allow(None)
        await read_all(later)
        assert path.seen.gone == [2]
        assert [(await read_all(one))[2].outcome for one in asked] == ["cancelled"] * 2


async def test_after_the_first_token_nobody_is_gone(path: RequestPath) -> None:
    async with leading(epoch=1, budget=1) as first, leading(epoch=2) as second:
        path.serve(first)
        asked = await path.ask([11], max_tokens=30)
        await eventually(lambda: path.seen.generated == 1)
        path.router.group_lost("g0", 1, "test")
        path.serve(second)
        await read_all(asked)
        assert (path.seen.gone, path.seen.first_after_ready) == ([], [1, 2])
