"""The engine thread against what comes from outside: aborts at any moment, releases, defects."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

import ryzanstein_coordinator
from ryzanstein.v1 import cluster_pb2, shard_worker_pb2
from ryzanstein.wire import EPOCH_KEY, StatusError
from ryzanstein_shard_worker.communication import CommunicationError
from ryzanstein_shard_worker.config import DistributedConfig
from ryzanstein_shard_worker.engine import Engine, EngineStoppedError
from ryzanstein_shard_worker.main import WorkerError, _first_of
from ryzanstein_shard_worker.process_groups import ProcessGroupManager
from ryzanstein_shard_worker.service import ShardWorkerServicer

from .sequences import submission

MODEL = shard_worker_pb2.ModelSpec(
    path=str(Path(ryzanstein_coordinator.__file__).parent / "bundled_model"),
    dtype="float32",
    max_model_len=64,
    reproducible=True,
)
LIMITS = shard_worker_pb2.EngineLimits(
    block_size=16, num_blocks=9, max_num_seqs=4, max_batched_tokens=64, memory_bytes=1 << 30
)
#: Nobody listens there: a group of one asks nobody.
NO_COORDINATOR = "127.0.0.1:9"


def load_request(**changes: Any) -> shard_worker_pb2.LoadShardRequest:
    return shard_worker_pb2.LoadShardRequest(
        **{"epoch": 1, "model": MODEL, "tensor_parallel_size": 1, "limits": LIMITS, **changes}
    )


def join_request(epoch: int = 1) -> shard_worker_pb2.JoinGroupRequest:
    return shard_worker_pb2.JoinGroupRequest(
        epoch=epoch,
        group_id="group-0",
        nonce="nonce",
        members=[shard_worker_pb2.GroupMember(loaded=True, has_files=True)],
        model=MODEL,
        limits=LIMITS,
        collective_timeout_s=10,
        join_timeout_s=10,
    )


class Worker:
    """An engine that tells of its changes whoever wants to know, on its own thread."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.on_step: Callable[[shard_worker_pb2.ExecuteResponse], object] = lambda response: None
        config = DistributedConfig(coordinator=NO_COORDINATOR, worker_id="w", keep_alive_s=0.01)
        self.groups = ProcessGroupManager(NO_COORDINATOR, host="127.0.0.1")
        self.engine = Engine(config, self.groups, publish=self._stepped, on_change=self._changed)
        self.engine.start()

    def _changed(self) -> None:
        self.on_change()

    def _stepped(self, response: shard_worker_pb2.ExecuteResponse) -> None:
        self.on_step(response)

    def stop_at(self, phase: str) -> threading.Event:
        """The engine thread waits at its next change to this phase until the event is set."""
        gate = threading.Event()

        def change() -> None:
            if self.engine.status.phase == phase:
                gate.wait(30)

        self.on_change = change
        return gate

    def wait_for(self, phase: str) -> None:
        wait_until(lambda: self.engine.status.phase == phase)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.on_change = lambda: None
    worker.engine.close()
    worker.groups.close()


@pytest.mark.parametrize("phase", ["loading", "forming", "warming up"])
def test_an_abort_ends_a_join_wherever_it_is(worker: Worker, phase: str) -> None:
    """Before its turn has come, before it has met anybody, and after."""
    gate = worker.stop_at(phase)
    loaded = worker.engine.load(load_request())
    joined = worker.engine.join(join_request())
    worker.wait_for(phase)
    threading.Timer(0.05, gate.set).start()
    worker.engine.abort("the epoch is over")
    assert not worker.engine.busy
    with pytest.raises(CommunicationError, match="the epoch is over"):
        joined.result(10)
    assert loaded.result(10).loaded
    assert worker.engine.status.state == cluster_pb2.WORKER_STATE_STANDBY
    assert worker.engine.status.phase == "loaded"

    worker.engine.join(join_request(2)).result(10)  # the next one is not touched by it
    worker.wait_for("serving")
    assert worker.engine.status.epoch == 2


def test_whoever_is_told_that_the_group_is_left_finds_it_left(worker: Worker) -> None:
    worker.engine.load(load_request()).result(30)
    worker.engine.join(join_request()).result(30)
    worker.wait_for("serving")
    seen: list[tuple[int, bool]] = []
    worker.on_change = lambda: seen.append((worker.engine.status.epoch, worker.engine.inbox is None))
    worker.engine.abort("the epoch is over")
    assert seen == [(0, True)]


def test_released_weights_and_pages_are_gone(worker: Worker) -> None:
    shard = worker.engine.load(load_request()).result(30)
    worker.engine.join(join_request()).result(30)
    worker.engine.abort("the shard is released")
    assert worker.engine.status.kv_cache_bytes > 0
    model, pool = weakref.ref(shard.model), weakref.ref(shard.pool(LIMITS, worker.engine._device))
    del shard
    worker.engine.release().result(30)
    gc.collect()
    assert model() is None
    assert pool() is None
    assert worker.engine.status.kv_cache_bytes == worker.engine.status.weights_bytes == 0


def test_a_worker_without_a_shard_does_not_say_that_one_is_loaded(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="no shard loaded"):
        worker.engine.join(join_request()).result(30)
    assert worker.engine.status.phase == "waiting"


def test_loading_ends_with_the_worker(worker: Worker) -> None:
    gate = worker.stop_at("loading")
    loaded = worker.engine.load(load_request())
    worker.wait_for("loading")
    closing = threading.Thread(target=worker.engine.close)
    closing.start()
    wait_until(lambda: worker.engine._closing)
    gate.set()
    closing.join(10)
    with pytest.raises(EngineStoppedError):
        loaded.result(0)
    assert worker.engine.ended.result(0) is None


def test_a_load_gives_way_to_that_of_another_rank(worker: Worker) -> None:
    """A spare that loads its first shard is given another rank: the group does not wait for the end of the first."""
    gate = worker.stop_at("loading")
    first = worker.engine.load(load_request(tensor_parallel_size=2))
    worker.wait_for("loading")
    rank_1 = load_request(tensor_parallel_size=2, rank=1)
    second = worker.engine.load(rank_1)
    gate.set()
    with pytest.raises(EngineStoppedError, match="another shard is wanted now") as stopped:
        first.result(10)
    assert all("shard" not in entry.frame.f_locals for entry in stopped.traceback[1:]), (
        "no weights stay with it"
    )
    assert second.result(30).key.rank == 1
    assert worker.engine.load(rank_1).result(30) is second.result(0), "it is held"


def test_a_load_that_is_asked_for_twice_goes_on(worker: Worker) -> None:
    """By a coordinator that was started again, for one."""
    gate = worker.stop_at("loading")
    first, again = worker.engine.load(load_request()), worker.engine.load(load_request())
    worker.wait_for("loading")
    gate.set()
    assert first.result(30) is again.result(30)


def test_what_nobody_waits_for_any_more_does_not_cost_what_is_held(worker: Worker) -> None:
    """Another rank, and back to the first one, while something else runs."""
    gate = worker.stop_at("loading")
    first = worker.engine.load(load_request(tensor_parallel_size=2))
    worker.wait_for("loading")
    other = worker.engine.load(load_request(tensor_parallel_size=2, rank=1))
    again = worker.engine.load(load_request(tensor_parallel_size=2))
    gate.set()
    with pytest.raises(EngineStoppedError, match="another shard is wanted now"):
        other.result(10)
    assert first.result(30) is again.result(30)


def test_a_defect_in_the_engine_ends_the_process(worker: Worker) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a defect")

    worker.on_change = fail
    worker.engine.join(join_request())
    with pytest.raises(ZeroDivisionError):
        worker.engine.ended.result(30)

    async def live() -> None:
        never: asyncio.Future[None] = asyncio.Future()
        await _first_of(never, never, asyncio.wrap_future(worker.engine.ended))

    with pytest.raises(WorkerError, match="ZeroDivisionError: a defect"):
        asyncio.run(live())


def test_a_worker_in_a_group_takes_no_other_order_of_that_kind(worker: Worker) -> None:
    servicer = ShardWorkerServicer(worker.engine, on_drain=lambda reason: None)
    context: Any = None

    async def orders() -> None:
        await servicer.LoadShard(load_request(), context)
        await servicer.JoinGroup(join_request(), context)
        for order in (
            servicer.JoinGroup(join_request(2), context),
            servicer.LoadShard(load_request(epoch=2), context),
        ):
            with pytest.raises(StatusError, match="abort or release it first") as refused:
                await order
            assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        abort = shard_worker_pb2.AbortRequest(epoch=2, reason="the epoch is over")
        await servicer.Abort(abort, context)
        await servicer.JoinGroup(join_request(2), context)

    asyncio.run(orders())
    assert worker.engine.busy


class Answer:
    """As much of a call's context as Execute uses."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        self.metadata.update(metadata)


def test_a_leader_says_at_once_that_it_has_taken_the_stream(worker: Worker) -> None:
    """Nothing is to be computed, so no step would show it."""
    servicer = ShardWorkerServicer(worker.engine, on_drain=lambda reason: None)
    answer: Any = Answer()

    async def nothing() -> AsyncIterator[shard_worker_pb2.ExecuteRequest]:
        await asyncio.Event().wait()
        yield shard_worker_pb2.ExecuteRequest()

    async def open_stream() -> None:
        stream: Any = servicer.Execute(nothing(), answer)
        with pytest.raises(StatusError, match="not the leader"):
            await anext(stream)
        assert not answer.metadata
        await servicer.LoadShard(load_request(), answer)
        await servicer.JoinGroup(join_request(), answer)
        stream = servicer.Execute(nothing(), answer)
        for _ in range(2):  # and goes on to
            life = await anext(stream)
            assert (life.epoch, life.HasField("stats"), len(life.outputs)) == (1, False, 0)
        await stream.aclose()

    asyncio.run(open_stream())
    assert answer.metadata == {EPOCH_KEY: "1"}


def test_a_stream_that_the_coordinator_opens_again_ends_the_one_before(worker: Worker) -> None:
    """And takes out what only the old one listened to; what was cancelled on it is forgotten."""
    servicer = ShardWorkerServicer(worker.engine, on_drain=lambda reason: None)
    context: Any = Answer()

    async def streams() -> list[int]:
        loop = asyncio.get_running_loop()
        worker.on_step = lambda response: loop.call_soon_threadsafe(servicer.publish, response)
        await servicer.LoadShard(load_request(), context)
        await servicer.JoinGroup(join_request(), context)

        async def commands(sequence_id: int) -> AsyncIterator[shard_worker_pb2.ExecuteRequest]:
            submitted = submission(sequence_id, [1, 2, 3], max_tokens=40, ignore_eos=True)
            yield shard_worker_pb2.ExecuteRequest(epoch=1, submit=submitted)
            await asyncio.Event().wait()

        first = servicer.Execute(commands(1), context)
        assert [o.sequence_id for o in (await anext(first)).outputs] in ([], [1])
        second: Any = servicer.Execute(commands(2), context)
        seen = [o.sequence_id for o in (await anext(second)).outputs]
        with pytest.raises(StatusError, match="is over on this worker"):
            async for _ in first:
                pass
        async for response in second:
            seen += [o.sequence_id for o in response.outputs]
            if any(o.finish_reason for o in response.outputs if o.sequence_id == 2):
                break
        await second.aclose()
        return seen

    seen = asyncio.run(streams())
    assert seen.count(2) == 40
    assert seen.count(1) < 40
