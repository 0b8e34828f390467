"""Every token of every stream once and in order, whichever leader dies when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest

from ryzanstein.v1.sampling_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_ERROR
from ryzanstein.v1.shard_worker_pb2 import ExecuteResponse
from ryzanstein_coordinator.requests import Place
from ryzanstein_coordinator.router import RouterConfig

from .cluster import RequestPath, eventually, read_all, request_path
from .leader import Leader

NewLeader = Callable[..., Awaitable[Leader]]


@pytest.fixture
async def path() -> AsyncIterator[RequestPath]:
    path = request_path()
    yield path
    path.router.close()
    path.intake.close()


@pytest.fixture
async def new_leader() -> AsyncIterator[NewLeader]:
    leaders: list[Leader] = []

    async def start(**settings: object) -> Leader:
        leader = Leader(**settings)  # type: ignore[arg-type]
        leaders.append(leader)
        return await leader.start()

    yield start
    for leader in leaders:
        await leader.close()


async def test_a_stream_has_every_token_once(path: RequestPath, new_leader: NewLeader) -> None:
    leader = await new_leader()
    path.serve(leader)

    tokens, _, ending = await read_all(await path.ask([11, 12, 13], max_tokens=40))

    assert tokens == leader.expected([11, 12, 13], max_tokens=40)
    assert ending.outcome == "length"
    assert path.router.counts() == (0, 0)


async def test_streams_go_on_with_the_next_leader_where_the_dead_one_left_them(
    path: RequestPath, new_leader: NewLeader
) -> None:
    first, second = await new_leader(budget=0), await new_leader(epoch=2)
    path.serve(first)
    prompts = [[20 + i] * (1 + i) for i in range(8)]
    subscriptions = [await path.ask(prompt, max_tokens=30) for prompt in prompts]
    await eventually(lambda: first.running == 8)  # so that each of them gets some of the tokens
    first.allow(50)
    await eventually(lambda: path.seen.generated == 50)

    await first.die()
    await eventually(lambda: path.seen.broken == [("g0", 1)])
    path.router.group_lost("g0", 1, "the leader died")
    assert all(s.record.ending is None and s.record.place is Place.STALLED for s in subscriptions)
    assert path.serve(second) == 8

    for subscription, prompt in zip(subscriptions, prompts, strict=True):
        tokens, _, ending = await read_all(subscription)
        assert tokens == second.expected(prompt, max_tokens=30)
        assert ending.outcome == "length"
    assert path.seen.generated == 8 * 30
    assert path.seen.first_after_ready == [1, 2]


async def test_replays_go_shortest_first_and_new_requests_after_them(
    path: RequestPath, new_leader: NewLeader
) -> None:
    first, second = await new_leader(budget=0), await new_leader(epoch=2)
    path.serve(first)
    for length in (40, 5, 20):
        await path.ask([50] * length, request_id=f"replayed-{length}", max_tokens=9)
    await eventually(lambda: first.running == 3)
    first.allow(3)
    await eventually(lambda: path.seen.generated == 3)
    path.router.group_lost("g0", 1, "test")
    await path.ask([50], request_id="new", max_tokens=9)

    path.serve(second)
    await eventually(lambda: len(second.submissions) == 4)

    order = [submitted.request_id for submitted in second.submissions]
    assert order == ["replayed-5", "replayed-20", "replayed-40", "new"]
    assert [len(submitted.emitted_token_ids) for submitted in second.submissions] == [1, 1, 1, 0]


async def test_a_leader_that_comes_back_in_the_same_epoch_is_found_again(
    path: RequestPath, new_leader: NewLeader
) -> None:
    leader = await new_leader()
    cut = True

    def cut_once(_response: ExecuteResponse) -> None:
        nonlocal cut
        if leader.steps == 10 and cut:
            cut = False
            raise ConnectionError

    leader.spoil = cut_once
    path.serve(leader)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=25))

    assert tokens == leader.expected([11], max_tokens=25)
    assert path.seen.broken == [("g0", 1)]


async def test_steps_of_another_epoch_are_dropped(path: RequestPath, new_leader: NewLeader) -> None:
    old = await new_leader(epoch=1)
    path.router.group_ready("g0", 2, old.stub, old.limits)  # it never heard of epoch 2
    subscription = await path.ask([11], max_tokens=5)
    await eventually(lambda: old.steps == 5)
    current = await new_leader(epoch=3)

    assert len(subscription.record.output) == 0
    path.serve(current)
    tokens, _, _ = await read_all(subscription)
    assert tokens == current.expected([11], max_tokens=5)


async def test_an_epoch_that_is_over_can_not_come_back(path: RequestPath, new_leader: NewLeader) -> None:
    old, current = await new_leader(epoch=1), await new_leader(epoch=2)
    path.serve(current)

    assert path.serve(old) == 0
    path.router.group_lost("g0", 1, "late news")
    await read_all(await path.ask([11], max_tokens=3))

    assert old.submissions == []
    assert len(current.submissions) == 1


@pytest.mark.parametrize("shift", [-1, 1])
async def test_a_gap_or_an_overlap_is_generated_again(
    path: RequestPath, new_leader: NewLeader, shift: int
) -> None:
    leader = await new_leader()
    spoiled = False

    def shift_once(response: ExecuteResponse) -> None:
        nonlocal spoiled
        if not spoiled and response.outputs[0].first_index == 7:
            response.outputs[0].first_index += shift
            spoiled = True

    leader.spoil = shift_once
    path.serve(leader)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=20))

    assert spoiled
    assert tokens == leader.expected([11], max_tokens=20)


async def test_a_long_stream_may_have_many_hiccups_with_tokens_in_between(
    path: RequestPath, new_leader: NewLeader
) -> None:
    left = set(range(1, 60, 6))

    def hiccup(response: ExecuteResponse) -> None:
        if response.outputs[0].first_index in left:
            left.remove(response.outputs[0].first_index)
            response.outputs[0].first_index += 1

    leader = await new_leader(spoil=hiccup)
    path.serve(leader)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=60))

    assert not left
    assert tokens == leader.expected([11], max_tokens=60)


async def test_a_sequence_that_breaks_again_and_again_is_given_up(
    path: RequestPath, new_leader: NewLeader
) -> None:
    def always(response: ExecuteResponse) -> None:
        response.outputs[0].first_index += 1

    leader = await new_leader(spoil=always)
    path.serve(leader)

    tokens, _, ending = await read_all(await path.ask([11], max_tokens=20))

    assert tokens == []
    assert ending.outcome == "error"
    assert ending.error is not None
    assert "broke off 4 times at token 0" in ending.error.message


async def test_a_leader_that_lets_go_of_a_sequence_gets_it_again(
    path: RequestPath, new_leader: NewLeader
) -> None:
    let_go = False

    def once(response: ExecuteResponse) -> None:
        nonlocal let_go
        if not let_go and response.outputs[0].first_index == 3:
            response.outputs[0].finish_reason = FINISH_REASON_CANCELLED
            let_go = True

    leader = await new_leader(spoil=once)
    path.serve(leader)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=9))

    assert tokens == leader.expected([11], max_tokens=9)
    assert len(leader.submissions) == 2


async def test_an_error_of_the_engine_ends_the_request_with_its_words(
    path: RequestPath, new_leader: NewLeader
) -> None:
    def fail(response: ExecuteResponse) -> None:
        response.outputs[0].finish_reason = FINISH_REASON_ERROR
        response.outputs[0].error = "no more blocks"

    leader = await new_leader(spoil=fail)
    path.serve(leader)

    tokens, _, ending = await read_all(await path.ask([11], max_tokens=9))

    assert len(tokens) == 1
    assert ending.error is not None
    assert "no more blocks" in ending.error.message


async def test_a_cancelled_request_leaves_the_leader(path: RequestPath, new_leader: NewLeader) -> None:
    leader = await new_leader(budget=3)
    path.serve(leader)
    subscription = await path.ask([11], request_id="a", max_tokens=200)
    await eventually(lambda: path.seen.generated == 3)

    assert path.front_door.cancel("a")
    await eventually(lambda: leader.cancellations == [leader.submissions[0].sequence_id])

    _, _, ending = await read_all(subscription)
    assert ending.outcome == "cancelled"
    assert path.router.counts() == (0, 0)


async def test_what_is_cancelled_before_it_was_sent_is_never_sent(
    path: RequestPath, new_leader: NewLeader
) -> None:
    leader = await new_leader()
    path.serve(leader)
    await path.ask([11], request_id="a", max_tokens=9)
    path.front_door.cancel("a")

    await read_all(await path.ask([12], request_id="b", max_tokens=9))

    assert [submitted.request_id for submitted in leader.submissions] == ["b"]


async def test_requests_wait_here_when_the_leader_has_enough(
    path: RequestPath, new_leader: NewLeader
) -> None:
    leader = await new_leader(max_num_seqs=4, budget=0)
    path.serve(leader)
    for i in range(20):
        await path.ask([30 + i], max_tokens=2)
    await eventually(lambda: leader.running == 6)  # two more than run, so that no place stays free for a step

    assert path.router.counts() == (6, 14)
    leader.allow(None)
    await eventually(lambda: path.router.counts() == (0, 0))
    assert len(leader.submissions) == 20


async def test_higher_priority_goes_first(path: RequestPath, new_leader: NewLeader) -> None:
    from ryzanstein.v1.sampling_pb2 import SamplingParams
    from ryzanstein_coordinator.intake import GenerateCall
    from ryzanstein_coordinator.prompts import TokenPrompt

    for priority in (0, 5, -1, 5):
        prompt = TokenPrompt([20 + priority])
        await path.front_door.generate(
            GenerateCall(prompt=prompt, sampling=SamplingParams(max_tokens=1), priority=priority)
        )
    leader = await new_leader()
    path.serve(leader)
    await eventually(lambda: len(leader.submissions) == 4)

    assert [submitted.priority for submitted in leader.submissions] == [5, 5, 0, -1]


async def test_the_group_with_the_least_load_gets_the_next_request(
    path: RequestPath, new_leader: NewLeader
) -> None:
    large, small = await new_leader(max_num_seqs=30, budget=0), await new_leader(max_num_seqs=10, budget=0)
    path.serve(large, group="large")
    path.serve(small, group="small")
    await asyncio.sleep(0)

    for i in range(20):
        await path.ask([30 + i], max_tokens=2)
    await eventually(lambda: large.running + small.running == 20)

    assert (large.running, small.running) == (15, 5)


async def test_streams_of_a_lost_group_move_when_another_serves_and_theirs_does_not_come_back(
    path: RequestPath, new_leader: NewLeader
) -> None:
    lost, other = await new_leader(budget=4), await new_leader(budget=0)
    path.serve(lost, group="lost")
    begun = await path.ask([11], max_tokens=20)
    await eventually(lambda: path.seen.generated == 4)
    path.serve(other, group="other")
    fresh = [await path.ask([12 + i], max_tokens=2) for i in range(2)]
    await eventually(lambda: lost.running + other.running == 3)
    path.router.group_lost("lost", 1, "test")

    await eventually(lambda: other.running == 2)  # what had not begun goes elsewhere at once
    other.allow(None)
    for subscription in fresh:
        await read_all(subscription)
    move_at = path.router.tick(path.clock.now)
    assert begun.record.place is Place.STALLED
    assert move_at == path.clock.now + 2.0
    path.clock.now = move_at
    path.router.tick(move_at)

    tokens, _, _ = await read_all(begun)
    assert tokens == other.expected([11], max_tokens=20)
    assert len(other.submissions[-1].emitted_token_ids) == 4


async def test_without_a_group_requests_end_when_the_grace_is_over_and_can_be_taken_up_again() -> None:
    path = request_path(router=RouterConfig(no_group_grace_s=30.0))
    subscription = await path.ask([11], request_id="a", max_tokens=5)
    path.clock.now += 29.9
    path.front_door.tick(path.clock.now)
    assert subscription.record.ending is None

    path.clock.now += 0.1
    path.front_door.tick(path.clock.now)
    _, _, ending = await read_all(subscription)
    assert ending.outcome == "unavailable"

    leader = await Leader().start()
    path.serve(leader)
    tokens, _, ending = await read_all(await path.front_door.attach("a", []))
    assert tokens == leader.expected([11], max_tokens=5)
    path.router.close()
    await leader.close()


async def test_a_request_that_comes_to_the_router_after_the_grace_is_given_up_too() -> None:
    path = request_path(router=RouterConfig(no_group_grace_s=30.0))
    late = await path.ask([11], request_id="late", max_tokens=5)
    path.router.tick(path.clock.now)
    changed: list[bool] = []
    path.router.connect(on_ended=lambda _: None, on_changed=lambda: changed.append(True))

    path.clock.now += 31.0  # while its prompt was read
    path.router.enqueue(late.record)

    assert changed == [True]  # the front door looks again now, not when something else happens
    path.router.tick(path.clock.now)
    assert late.record.ending is not None
    assert late.record.ending.outcome == "unavailable"


async def test_a_text_that_can_not_be_made_ends_its_own_request_only(
    path: RequestPath, new_leader: NewLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = await new_leader(budget=0)
    path.serve(leader)
    good, bad = await path.ask([11], max_tokens=20), await path.ask([12], max_tokens=20)

    def fail(_token_id: int) -> str:
        raise RuntimeError("no such piece")

    monkeypatch.setattr(bad.record.output, "_detokenizer", SimpleNamespace(push=fail, flush=str))
    leader.allow(None)

    assert (await read_all(good))[0] == leader.expected([11], max_tokens=20)
    _, _, ending = await read_all(bad)
    assert ending.error is not None
    assert ending.error.message == "the text of token 0 can't be made: RuntimeError: no such piece"
    assert path.seen.broken == []
    await eventually(lambda: leader.running == 0)


async def test_the_stream_of_an_epoch_that_is_over_never_speaks_again(
    path: RequestPath, new_leader: NewLeader
) -> None:
    """gRPC swallows a cancellation that meets a refused connection; the stream must end all the same."""
    dead, alive = await new_leader(), await new_leader(epoch=1000)
    await dead.die()
    for epoch in range(2, 60):
        path.router.group_ready("g0", epoch, dead.stub, dead.limits)
        for _ in range(epoch % 12):
            await asyncio.sleep(0)
    path.serve(alive)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=20))
    complaints = len(path.seen.broken)
    await eventually(lambda: len([t for t in asyncio.all_tasks() if t.get_name() == "execute-1000"]) == 1)
    streams = [task for task in asyncio.all_tasks() if task.get_name().startswith("execute-")]

    assert tokens == alive.expected([11], max_tokens=20)
    assert {task.get_name() for task in streams} == {"execute-1000", "execute-1000-commands"}
    assert all(epoch < 1000 for _, epoch in path.seen.broken)
    assert len(path.seen.broken) == complaints


async def test_a_defect_in_taking_in_a_step_costs_a_replay_and_no_token(
    path: RequestPath, new_leader: NewLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = await new_leader()

    def fail_once(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("defect")

    monkeypatch.setattr(path.seen, "step", fail_once)
    path.serve(leader)

    tokens, _, _ = await read_all(await path.ask([11], max_tokens=20))

    assert tokens == leader.expected([11], max_tokens=20)
    assert path.seen.broken == [("g0", 1)]


async def test_a_channel_that_is_closed_ends_the_stream_until_the_next_leader(
    path: RequestPath, new_leader: NewLeader
) -> None:
    closed, following = await new_leader(budget=3), await new_leader(epoch=2)
    path.serve(closed)
    subscription = await path.ask([11], max_tokens=20)
    await eventually(lambda: path.seen.generated == 3)
    await closed.close()
    await eventually(lambda: len(path.seen.broken) >= 2)  # of the open stream, and of opening another

    path.serve(following)

    assert (await read_all(subscription))[0] == following.expected([11], max_tokens=20)


@pytest.mark.parametrize("seed", range(6))
async def test_deaths_at_random_moments_lose_and_repeat_nothing(seed: int, new_leader: NewLeader) -> None:
    import random

    chance = random.Random(seed)
    path = request_path()
    prompts = [[chance.randrange(10, 600) for _ in range(chance.randrange(1, 30))] for _ in range(12)]
    subscriptions = [await path.ask(prompt, max_tokens=chance.randrange(1, 60)) for prompt in prompts]
    lengths = [subscription.record.spec.sampling.max_tokens for subscription in subscriptions]
    readers = [asyncio.create_task(read_all(subscription)) for subscription in subscriptions]

    for epoch in range(1, 6):
        leader = await new_leader(epoch=epoch, budget=chance.randrange(0, 80), max_num_seqs=8)
        path.serve(leader)
        if chance.random() < 0.7:
            await eventually(lambda leader=leader: leader.budget == 0 or path.router.counts() == (0, 0))  # type: ignore[misc]
        await leader.die()
        if chance.random() < 0.5:
            path.router.group_lost("g0", epoch, "test")
    last = await new_leader(epoch=9, max_num_seqs=8)
    path.serve(last)

    for reader, prompt, length in zip(readers, prompts, lengths, strict=True):
        tokens, _, _ = await reader
        assert tokens == last.expected(prompt, max_tokens=length)
    assert path.seen.generated == sum(lengths)
    path.router.close()
