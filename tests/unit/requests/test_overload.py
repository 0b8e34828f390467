"""More is asked than can be served: who is sent away, with which words and delays, and who goes on."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.v1.shard_worker_pb2 import ExecuteResponse
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.admission import AdmissionLimits
from ryzanstein_coordinator.intake import GenerateCall
from ryzanstein_coordinator.prompts import ModelFacts, TextPrompt, TokenPrompt
from ryzanstein_coordinator.requests import Place, Subscription

from .cluster import RequestPath, eventually, read_all, request_path
from .leader import Leader


async def ask(
    path: RequestPath,
    owner: str = "",
    *,
    prompt: int = 1,
    timeout_s: float | None = None,
    priority: int = 0,
    **sampling: object,
) -> Subscription:
    """A request of this owner with so many tokens."""
    params = SamplingParams(**{"seed": 0, **sampling})  # type: ignore[arg-type]
    call = GenerateCall(
        prompt=TokenPrompt([11] * prompt),
        sampling=params,
        owner=owner,
        timeout_s=timeout_s,
        priority=priority,
    )
    return await path.front_door.generate(call)


async def refused(path: RequestPath, owner: str = "", **asked: object) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await ask(path, owner, **asked)  # type: ignore[arg-type]
    return caught.value


# --- tokens


async def test_the_tokens_that_wait_are_bounded() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting_tokens=100))
    for _ in range(4):
        await ask(path, prompt=5, max_tokens=20)

    error = await refused(path, prompt=5, max_tokens=20)

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.message == (
        "4 requests ask for 100 tokens, and with 25 more they would ask for more than 100"
    )
    assert error.retry_after_s == 1.0
    assert path.seen.ended == ["refused"]


async def test_a_text_counts_when_it_is_read_and_leaves_nothing_behind_if_it_is_too_much() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting_tokens=100))
    await ask(path, prompt=5, max_tokens=20)
    text = GenerateCall(prompt=TextPrompt("word " * 40), sampling=SamplingParams(max_tokens=20))

    with pytest.raises(StatusError, match="2 requests ask for 45 tokens") as caught:
        await path.front_door.generate(text)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert path.front_door._store.total.tokens == 25
    assert path.front_door._store.unfinished == 1


async def test_a_request_that_names_no_bound_counts_as_an_average_one() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting_tokens=10_000), model=LARGE)
    store = path.front_door._store
    unbounded = await ask(path)
    assert store.total.tokens == 1  # nothing was measured, and nobody is refused on a guess
    leader = await Leader().start()
    path.serve(leader)
    for _ in range(10):
        await read_all(await ask(path, max_tokens=40))
    path.front_door.cancel(unbounded.record.spec.request_id)
    leader.allow(0)
    await ask(path)
    assert store.total.tokens == 41
    path.router.close()
    await leader.close()


LARGE = ModelFacts(name="tiny", max_model_len=20_000, vocab_size=700)


async def test_a_request_that_comes_back_is_not_sent_away_for_its_tokens() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting_tokens=100))
    first = await ask(path, prompt=5, max_tokens=90)
    path.front_door.leave(first)
    await ask(path, prompt=5, max_tokens=90)

    await path.front_door.attach(first.record.spec.request_id, [])

    assert path.front_door._store.total.tokens == 190


# --- keys


async def test_a_key_that_fills_the_queue_does_not_lock_another_out_and_both_are_served_alike() -> None:
    path = request_path()
    leader = await Leader(max_num_seqs=2, budget=0).start()
    path.serve(leader)
    crowd = [await ask(path, "crowd", prompt=5, max_tokens=10) for _ in range(18)]
    assert (await refused(path, "crowd", max_tokens=10)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    single = [await ask(path, "single", prompt=5, max_tokens=10) for _ in range(4)]
    assert (await refused(path, "single", max_tokens=10)).code is grpc.StatusCode.RESOURCE_EXHAUSTED

    leader.allow(None)
    await asyncio.gather(*(read_all(one) for one in single))

    left = sum(one.record.ending is None for one in crowd)
    assert left >= 18 - 4 - 2 * 4  # what ran, and a turn for each of the other's
    for one in crowd:
        await read_all(one)
    path.router.close()
    await leader.close()


async def test_a_fault_costs_nobody_turns() -> None:
    """What is computed again after it was served already."""
    path = request_path()
    leader = await Leader(max_num_seqs=2, budget=0).start()
    path.serve(leader)
    asked = [await ask(path, owner, prompt=50, max_tokens=6) for _ in range(6) for owner in ("a", "b")]
    await eventually(lambda: leader.running == 4)
    leader.allow(4)
    await eventually(lambda: path.seen.generated == 4)
    for epoch in (2, 3, 4):
        path.router.group_lost("g0", epoch - 1, "test")
        leader.epoch = epoch
        path.serve(leader)
        await eventually(lambda: leader.running == 4)
    shares = path.router._queue._shares
    assert shares._tokens == {"a": 2 * 50 + 2, "b": 2 * 50 + 2}
    leader.allow(None)
    owners = Counter[str]()
    for one in asked:
        owners[one.record.spec.owner] += len((await read_all(one))[0])
    assert owners == {"a": 36, "b": 36}
    path.router.close()
    await leader.close()


# --- coming back


async def test_a_quiet_time_before_does_not_make_the_delay_longer() -> None:
    path, leader = await busy_path(token_s=0.1, tokens=10, max_waiting=2, quiet_s=3600.0)

    delays = [(await refused(path, max_tokens=10)).retry_after_s for _ in range(3)]

    assert delays == pytest.approx([1.0, 2.0, 3.0])  # one place, and a second for each request
    path.router.close()
    await leader.close()


# --- deadlines


async def busy_path(
    *, token_s: float, tokens: int, max_waiting: int = 50, quiet_s: float = 0.0
) -> tuple[RequestPath, Leader]:
    """One that has measured these, with one place that is taken and nobody waiting."""
    path = request_path(admission=AdmissionLimits(max_waiting=max_waiting))
    leader = await Leader(max_num_seqs=1, budget=0).start()

    def take_time(_response: ExecuteResponse) -> None:
        path.clock.now += token_s

    leader.spoil = take_time
    path.serve(leader)
    for number in range(12):
        asked = await ask(path, max_tokens=tokens)
        for had in range(tokens):  # each is recorded at its own time, however busy the machine is
            leader.allow(1)
            await eventually(lambda asked=asked, had=had: len(asked.record.output) > had)  # type: ignore[misc]
        await read_all(asked)
        path.clock.now += quiet_s if number == 2 else 0.0
    for _ in range(3):
        await ask(path, max_tokens=tokens)
    return path, leader


async def test_a_deadline_that_can_not_be_met_is_refused_at_once() -> None:
    path, leader = await busy_path(token_s=0.1, tokens=10)
    for _ in range(4):
        await ask(path, max_tokens=200)  # 10 tokens each, as they have been

    error = await refused(path, timeout_s=1.0, max_tokens=10)

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.message == "about 4 s of other requests' tokens go before it; it can't be done within 1 s"
    assert error.retry_after_s == pytest.approx(1.0)
    assert path.seen.ended[-1] == "refused"
    for kept in (
        await ask(path, timeout_s=2.5, max_tokens=10),  # what was measured may be wrong by half
        await ask(path, timeout_s=1.0, max_tokens=10, priority=1),
        await ask(path, "another key", timeout_s=1.0, max_tokens=10),
        await ask(path, max_tokens=10),
    ):
        assert kept.record.place is Place.WAITING
    path.router.close()
    await leader.close()


async def test_a_deadline_that_the_request_itself_can_not_meet_is_told_so() -> None:
    path, leader = await busy_path(token_s=0.1, tokens=10)
    error = await refused(path, timeout_s=1.0, max_tokens=100, ignore_eos=True, priority=1)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.message == (
        "100 tokens take about 9.9 s, at 100 ms each; they can't be generated within 1 s"
    )
    assert path.seen.ended[-1] == "refused"
    await ask(path, timeout_s=1.0, max_tokens=100, priority=1)  # it may stop early
    await ask(path, timeout_s=1.0, max_tokens=100, ignore_eos=True, stop=["x"], priority=1)
    path.clock.now += 60.0  # nothing was measured of late
    await ask(path, timeout_s=1.0, max_tokens=100, ignore_eos=True, priority=1)
    path.router.close()
    await leader.close()


async def test_before_anything_was_measured_nobody_is_refused_for_a_deadline() -> None:
    path = request_path()
    for _ in range(100):
        await ask(path, max_tokens=200)
    await ask(path, timeout_s=0.001, max_tokens=200, ignore_eos=True)
