"""A request that breaks its group each time ends; whoever only was there goes on, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from ryzanstein.v1.shard_worker_pb2 import ExecuteResponse
from ryzanstein_coordinator.group_record import Cause
from ryzanstein_coordinator.requests import Place, Subscription
from ryzanstein_coordinator.suspicion import COUNTED, after_break, next_held

from .cluster import RequestPath, eventually, read_all, request_path
from .leader import Leader
from .test_decisions import record


@pytest.fixture
async def path() -> AsyncIterator[RequestPath]:
    path = request_path()
    yield path
    path.router.close()
    path.intake.close()


class Group:
    """A group that breaks for as long as `breaks_with` says so of what its leader has: ids, with their tokens since
    they were submitted."""

    def __init__(
        self,
        path: RequestPath,
        cause: Cause,
        breaks_with: Callable[[dict[str, int]], bool],
        *,
        step_s: float = 0.0,
        prefill: int = 0,
    ) -> None:
        self.step_s = step_s
        self.prefill = prefill
        self.path = path
        self.cause = cause
        self.breaks_with = breaks_with
        self.breaks = 0
        #: Of the epoch that serves.
        self.leader = Leader()
        #: Of every epoch: the ids that its leader was given, in order.
        self.submitted: list[list[str]] = []

    async def serve(self, subscriptions: list[Subscription]) -> None:
        """Epoch after epoch, until every request has ended."""
        while any(subscription.record.ending is None for subscription in subscriptions):
            epoch = len(self.submitted) + 1
            leader = self.leader = await Leader(epoch=epoch, step_s=self.step_s, prefill=self.prefill).start()
            complaints = len(self.path.seen.broken)

            def crash(_response: ExecuteResponse, leader: Leader = leader) -> None:
                if self.breaks_with(leader.sampled):
                    raise ConnectionError

            leader.spoil = crash
            self.path.serve(leader)
            await eventually(
                lambda before=complaints: (  # type: ignore[misc]
                    len(self.path.seen.broken) > before
                    or all(subscription.record.ending is not None for subscription in subscriptions)
                )
            )
            self.submitted.append([submission.request_id for submission in leader.submissions])
            if len(self.path.seen.broken) > complaints:
                self.breaks += 1
                self.path.router.group_lost("g0", leader.epoch, f"fault {self.breaks}", self.cause)
            await leader.close()


async def ask(path: RequestPath, sizes: dict[str, int], max_tokens: int = 12) -> dict[str, Subscription]:
    """By id, requests with prompts of so many tokens."""
    return {
        name: await path.ask([40 + number] * size, request_id=name, max_tokens=max_tokens)
        for number, (name, size) in enumerate(sizes.items())
    }


async def assert_whole(subscriptions: dict[str, Subscription], *, but: str = "") -> None:
    """Every request has all of its tokens."""
    oracle = Leader()
    for name, subscription in subscriptions.items():
        if name != but:
            tokens, _, ending = await read_all(subscription)
            assert ending.outcome == "length", (name, ending)
            assert tokens == oracle.expected(subscription.record.spec.prompt, max_tokens=len(tokens))
            assert len(tokens) == subscription.record.spec.sampling.max_tokens


@pytest.mark.parametrize("cause", sorted(COUNTED - {Cause.MEMORY}))
async def test_a_request_that_breaks_its_group_each_time_ends_and_the_others_go_on(
    path: RequestPath, cause: Cause
) -> None:
    asked = await ask(path, {"a": 3, "poison": 30, "b": 5, "c": 60})
    group = Group(path, cause, lambda ids: "poison" in ids)
    await group.serve(list(asked.values()))

    ending = asked["poison"].record.ending
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.INTERNAL
    assert ending.error.message == "the group broke 5 times while it computed this request: fault 5"
    assert group.breaks == 5
    await assert_whole(asked, but="poison")
    assert path.router.counts() == (0, 0)


async def test_a_request_that_turns_to_poison_in_its_midst_keeps_what_it_has(path: RequestPath) -> None:
    asked = await ask(path, {"a": 3, "poison": 30})
    record = asked["poison"].record
    group = Group(path, Cause.ENGINE, lambda _: group.leader.lengths.get("poison", 0) >= 8)
    await group.serve(list(asked.values()))
    tokens, _, ending = await read_all(asked["poison"])
    assert len(tokens) >= 7
    assert tokens == Leader().expected(record.spec.prompt, max_tokens=len(tokens))
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.INTERNAL
    await assert_whole(asked, but="poison")


async def test_two_poison_requests_both_end(path: RequestPath) -> None:
    asked = await ask(path, {"p1": 10, "a": 3, "p2": 20, "b": 40})
    group = Group(path, Cause.COLLECTIVE, lambda ids: bool(ids.keys() & {"p1", "p2"}))
    await group.serve(list(asked.values()))
    for name in ("p1", "p2"):
        ending = asked.pop(name).record.ending
        assert ending is not None
        assert ending.error is not None
        assert ending.error.code is grpc.StatusCode.INTERNAL
    assert group.breaks == 2 + 3 + 3
    await assert_whole(asked)


async def test_suspects_are_submitted_one_at_a_time_and_nobody_else_waits_for_them(path: RequestPath) -> None:
    asked = await ask(path, {"poison": 9, "a": 3})
    group = Group(path, Cause.PROCESS, lambda ids: "poison" in ids)

    async def arrives_later() -> None:
        await eventually(lambda: group.breaks >= 3)
        asked["late"] = await path.ask([90], request_id="late", max_tokens=4)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(arrives_later())
        tasks.create_task(group.serve(list(asked.values())))
    await group.serve(list(asked.values()))  # should it have come too late for all of that
    assert all(ids.count("poison") <= 1 for ids in group.submitted)
    assert all(
        ids.index("a") < ids.index("poison") for ids in group.submitted[2:] if {"a", "poison"} <= {*ids}
    )
    await assert_whole(asked, but="poison")


async def test_ordinary_kills_in_a_row_fail_nobody(path: RequestPath) -> None:
    """Each epoch brings every stream a token, and dies."""
    asked = await ask(path, {"a": 3, "b": 30, "c": 9}, max_tokens=25)
    tokens = dict.fromkeys(asked, 0)

    def all_have_one_more(_ids: dict[str, int]) -> bool:
        now = {name: len(subscription.record.output) for name, subscription in asked.items()}
        if all(now[name] > tokens[name] for name in asked):
            tokens.update(now)
            return True
        return False

    group = Group(path, Cause.PROCESS, all_have_one_more, step_s=0.01)  # slow enough to be followed
    await group.serve(list(asked.values()))
    assert group.breaks >= 5  # far more than make a suspect, and an end
    await assert_whole(asked)


@pytest.mark.parametrize("cause", sorted(set(Cause) - COUNTED))
async def test_what_no_request_can_cause_makes_nobody_a_suspect(path: RequestPath, cause: Cause) -> None:
    asked = await ask(path, {"a": 3, "b": 30})
    group = Group(path, cause, lambda _ids: group.breaks < 8)
    await group.serve(list(asked.values()))
    assert group.breaks == 8
    assert not any(subscription.record.suspicion.breaks for subscription in asked.values())
    await assert_whole(asked)


async def test_the_largest_request_goes_last_when_memory_runs_out_and_all_go_on(path: RequestPath) -> None:
    asked = await ask(path, {"small": 3, "large": 90, "middle": 40})
    group = Group(path, Cause.MEMORY, lambda ids: "large" in ids and group.breaks < 1)
    await group.serve(list(asked.values()))
    assert group.breaks == 1
    assert group.submitted[1] == ["small", "middle", "large"]
    await assert_whole(asked)


async def test_the_largest_request_is_refused_when_memory_runs_out_with_it_again(path: RequestPath) -> None:
    asked = await ask(path, {"small": 3, "large": 90, "middle": 40})
    group = Group(path, Cause.MEMORY, lambda ids: "large" in ids)
    await group.serve(list(asked.values()))
    assert group.breaks == 2
    ending = asked["large"].record.ending
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert ending.error.retry_after_s is None
    assert "this request of 90 tokens (90 of the prompt, 0 generated) is too large" in ending.error.message
    await assert_whole(asked, but="large")


async def test_what_was_put_off_for_memory_is_not_refused_for_a_larger_one(path: RequestPath) -> None:
    asked = await ask(path, {"small": 3, "first": 40})
    larger: list[Subscription] = []

    def larger_one_comes(ids: dict[str, int]) -> bool:
        return group.breaks == 0 or (group.breaks == 1 and {"first", "larger"} <= ids.keys())

    group = Group(path, Cause.MEMORY, larger_one_comes, step_s=0.001, prefill=1)

    async def arrives_later() -> None:
        await eventually(lambda: group.breaks == 1)
        larger.append(await path.ask([90] * 90, request_id="larger", max_tokens=60))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(arrives_later())
        tasks.create_task(group.serve(list(asked.values())))
    await group.serve(larger)
    asked["larger"] = larger[0]
    await assert_whole(asked)
    assert group.breaks == 2


def test_the_largest_is_put_off_and_refused_only_if_it_is_the_largest_still() -> None:
    small, large, larger = record("small", prompt=5), record("large", prompt=50), record("larger", prompt=90)
    assert after_break([small, large], Cause.MEMORY, "x") == []
    assert large.suspicion.preempted
    assert after_break([small, large, larger], Cause.MEMORY, "x") == []
    assert larger.suspicion.preempted
    given_up = after_break([small, large], Cause.MEMORY, "x")
    assert [one.record for one in given_up] == [large]


async def test_memory_that_is_short_for_everybody_takes_one_after_the_other(path: RequestPath) -> None:
    asked = await ask(path, {"a": 3, "b": 30, "c": 9})
    group = Group(path, Cause.MEMORY, lambda _ids: True)
    await group.serve(list(asked.values()))
    assert group.breaks <= 3 * 4
    assert all(subscription.record.ending is not None for subscription in asked.values())


async def test_a_suspect_that_is_cancelled_leaves_no_trace(path: RequestPath) -> None:
    asked = await ask(path, {"poison": 9, "other": 9})
    leader = await Leader(budget=0).start()
    for epoch in (1, 2):
        leader.epoch = epoch
        path.serve(leader)
        await eventually(lambda: leader.running == 2)
        path.router.group_lost("g0", epoch, "test", Cause.STUCK)
    assert path.router.counts() == (0, 2)
    assert all(subscription.record.place is Place.WAITING for subscription in asked.values())
    assert path.front_door.cancel("poison")
    assert path.router.counts() == (0, 1)
    leader.epoch = 3
    path.serve(leader)
    leader.allow(None)
    await assert_whole(asked, but="poison")
    path.router.close()
    await leader.close()


# --- isolation


async def test_one_that_gets_a_token_from_each_prefill_is_found_and_a_long_prompt_beside_it_goes_on(
    path: RequestPath,
) -> None:
    """Decoding it breaks the group; a prompt that takes longer than that to prefill never has a token beside it."""
    asked = await ask(path, {"long": 150, "poison": 9, "a": 3})
    group = Group(path, Cause.PROCESS, lambda ids: ids.get("poison", 0) >= 2, prefill=10)
    await group.serve(list(asked.values()))
    ending = asked["poison"].record.ending
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.INTERNAL
    assert group.breaks == 5
    await assert_whole(asked, but="poison")


async def test_even_if_each_of_its_tokens_clears_it_nobody_else_is_given_up(
    path: RequestPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had two tokens of each submission: then it ends by itself, a few tokens per break."""
    monkeypatch.setattr("ryzanstein_coordinator.suspicion._INNOCENT_TOKENS", 1)
    asked = await ask(path, {"long": 150, "poison": 9, "a": 3}, max_tokens=9)
    group = Group(path, Cause.PROCESS, lambda ids: ids.get("poison", 0) >= 2, prefill=10)
    await group.serve(list(asked.values()))
    assert group.breaks >= 6  # more than give anybody up
    await assert_whole(asked)


async def test_what_needs_isolation_goes_first_and_with_nothing_beside_it(path: RequestPath) -> None:
    asked = await ask(path, {"poison": 9, "a": 3, "b": 30})
    group = Group(path, Cause.PROCESS, lambda ids: "poison" in ids, step_s=0.001)
    await group.serve(list(asked.values()))
    assert group.breaks == 5
    assert group.submitted[3:5] == [["poison"], ["poison"]]
    assert [*group.submitted[2]][-1] == "poison"
    assert sorted(group.submitted[5]) == ["a", "b"]
    await assert_whole(asked, but="poison")


async def isolate(path: RequestPath, leader: Leader, name: str) -> None:
    """Breaks the group, epoch after epoch, until its shortest request is computed alone."""
    leader.allow(0)
    for epoch in range(1, 5):
        leader.epoch = epoch
        path.serve(leader)
        await eventually(lambda: leader.running == path.router.counts()[0] > 0)
        if epoch < 4:
            path.router.group_lost("g0", epoch, "test", Cause.STUCK)
            await eventually(lambda: leader.running == 0)
    assert leader.sampled.keys() == {name}


@pytest.mark.parametrize("ends", ["cancelled", "late", "its caller knows the end"])
async def test_when_the_isolated_one_ends_the_others_go_on(path: RequestPath, ends: str) -> None:
    asked = await ask(path, {"a": 3, "b": 5}, max_tokens=200)
    asked["alone"] = await path.ask([60], request_id="alone", max_tokens=3, timeout_s=50.0)
    leader = await Leader().start()
    await isolate(path, leader, "alone")
    assert path.router.counts() == (1, 2)
    if ends == "cancelled":
        path.front_door.cancel("alone")
    elif ends == "late":
        path.clock.now += 50.0
        path.front_door.tick(path.clock.now)
    else:
        whole = leader.expected([60], max_tokens=3)
        await path.front_door.attach("alone", whole)
    leader.allow(None)
    await assert_whole(asked, but="alone")
    path.router.close()
    await leader.close()


async def test_a_caller_with_more_tokens_does_not_end_the_isolation(path: RequestPath) -> None:
    asked = await ask(path, {"a": 3, "b": 5}, max_tokens=200)
    asked["alone"] = await path.ask([60], request_id="alone", max_tokens=20)
    leader = await Leader().start()
    await isolate(path, leader, "alone")
    whole = leader.expected([60], max_tokens=20)
    await path.front_door.attach("alone", whole[:7])
    await eventually(lambda: len(leader.submissions[-1].emitted_token_ids) == 7)
    assert path.router.counts() == (1, 2)
    late = await path.ask([70], request_id="late", max_tokens=4)
    assert late.record.place is Place.WAITING
    leader.allow(None)
    asked["late"] = late
    await assert_whole(asked)
    path.router.close()
    await leader.close()


async def test_while_one_group_isolates_the_others_streams_go_on_in_another(path: RequestPath) -> None:
    asked = await ask(path, {"a": 3, "b": 5}, max_tokens=200)
    asked["alone"] = await path.ask([60], request_id="alone", max_tokens=20)
    leader, other = await Leader().start(), await Leader(budget=0).start()
    await isolate(path, leader, "alone")
    path.serve(other, group="g1")
    await eventually(lambda: other.sampled.keys() == {"a"})  # a suspect too, as all are that were there
    assert leader.sampled.keys() == {"alone"}
    other.allow(None)
    for name in ("a", "b"):
        assert (await read_all(asked[name]))[2].outcome == "length"
    leader.allow(None)
    await assert_whole({"alone": asked["alone"]})
    path.router.close()
    await leader.close()
    await other.close()


def test_alone_counts_once_among_others_and_then_only_with_nobody_beside_it() -> None:
    suspect, other = record("suspect"), record("other")
    for _ in range(2):
        after_break([suspect], Cause.PROCESS, "x")
    assert (suspect.suspicion.is_suspect, suspect.suspicion.alone) == (True, 0)
    after_break([suspect, other], Cause.PROCESS, "x")
    assert suspect.suspicion.needs_isolation
    for _ in range(9):
        other.suspicion.breaks = 0
        assert after_break([suspect, other], Cause.PROCESS, "x") == []
    assert suspect.suspicion.alone == 1
    assert after_break([suspect], Cause.PROCESS, "x") == []
    assert [one.record for one in after_break([suspect], Cause.PROCESS, "x")] == [suspect]


def test_who_may_join_what_runs() -> None:
    innocent, shaken = record("innocent"), record("shaken")
    suspect, isolated = record("suspect", prompt=5), record("isolated", prompt=90)
    put_off = record("put off", prompt=2)
    shaken.suspicion.breaks = 1
    suspect.suspicion.breaks = 2
    isolated.suspicion.breaks = isolated.suspicion.alone = 3
    put_off.suspicion.preempted = True
    held = [put_off, suspect, isolated]

    assert next_held(held, [innocent]) is isolated
    assert next_held(held, [suspect]) is isolated
    assert next_held([put_off, suspect], [isolated]) is None
    assert next_held(held, [innocent], may_isolate=False) is suspect
    assert next_held([put_off, suspect], [innocent]) is suspect
    assert next_held([put_off], [suspect]) is None
    assert next_held([put_off], [innocent, shaken]) is None
    assert next_held([put_off], [innocent]) is put_off
    assert next_held([], [innocent]) is None
