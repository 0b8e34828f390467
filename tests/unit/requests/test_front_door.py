"""A request's life as its caller sees it: admitted or refused, cancelled, late, left and taken up again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import MAX_MESSAGE_BYTES, StatusError
from ryzanstein_coordinator.admission import AdmissionLimits
from ryzanstein_coordinator.group_stream import submission
from ryzanstein_coordinator.intake import GenerateCall
from ryzanstein_coordinator.output import TokenSpan
from ryzanstein_coordinator.prompts import ModelFacts, TextPrompt, TokenPrompt
from ryzanstein_coordinator.request_log import SqliteRequestLog
from ryzanstein_coordinator.request_store import RetentionLimits
from ryzanstein_coordinator.requests import MAX_SPAN_TOKENS, MAX_SPAN_TOKENS_WITH_LOGPROBS, RequestSpec
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .cluster import RequestPath, eventually, read_all, request_path
from .leader import Leader, script
from .trained_tokenizers import byte_level

TOKENIZER = ModelTokenizer(byte_level())


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


#: Takes prompts that are tokenised in a thread.
LONG = ModelFacts(name="tiny", max_model_len=20_000, vocab_size=700)


@pytest.fixture
async def path() -> AsyncIterator[RequestPath]:
    path = request_path()
    yield path
    path.router.close()
    path.intake.close()


@pytest.fixture
async def leader(path: RequestPath) -> AsyncIterator[Leader]:
    leader = await Leader().start()
    path.serve(leader)
    yield leader
    await leader.close()


# --- ends


async def test_the_text_stops_before_the_stop_text_and_the_tokens_with_the_one_that_completes_it(
    path: RequestPath, leader: Leader
) -> None:
    answer = ids_of("one two STOP three four five")
    leader.next_token = script(answer)

    tokens, text, ending = await read_all(await path.ask([11], max_tokens=len(answer), stop=["STOP", "xyz"]))

    assert text == "one two "
    assert (ending.outcome, ending.stop) == ("stop", "STOP")
    assert tokens == answer[: len(tokens)]
    assert "STOP" in TOKENIZER.decode(tokens)
    assert "STOP" not in TOKENIZER.decode(tokens[:-1])


async def test_a_sequence_that_a_stop_text_ended_leaves_the_leader(path: RequestPath, leader: Leader) -> None:
    answer = [*ids_of("a STOP "), *[50] * 200]
    leader.next_token = script(answer)
    await read_all(await path.ask([11], max_tokens=200, stop=["STOP"]))

    await eventually(lambda: leader.running == 0)
    assert leader.cancellations == [leader.submissions[0].sequence_id]


async def test_an_end_of_sequence_id_is_not_shown(path: RequestPath, leader: Leader) -> None:
    answer = [*ids_of("yes"), 699]
    leader.next_token = script(answer)

    tokens, text, ending = await read_all(await path.ask([11], max_tokens=50))

    assert (tokens, text, ending.outcome, ending.stop) == (answer, "yes", "stop", "")
    assert leader.cancellations == []


async def test_a_stop_token_id_of_the_request_ends_it_too(path: RequestPath, leader: Leader) -> None:
    answer = ids_of("yes no")
    leader.next_token = script(answer)

    tokens, text, ending = await read_all(await path.ask([11], max_tokens=50, stop_token_ids=[answer[-1]]))

    assert tokens == answer
    assert text == TOKENIZER.decode(answer[:-1])
    assert ending.outcome == "stop"


async def test_the_leader_gets_end_ids_unless_they_are_ignored(path: RequestPath, leader: Leader) -> None:
    await read_all(await path.ask([11], max_tokens=1))
    await read_all(await path.ask([11], max_tokens=1, ignore_eos=True))

    assert [list(submitted.eos_token_ids) for submitted in leader.submissions] == [[699], []]


# --- refusals


async def test_a_full_queue_refuses_at_once_with_a_delay() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting=2))
    leader = await Leader(max_num_seqs=1, budget=0).start()
    path.serve(leader)
    for i in range(3):
        await path.ask([30 + i], max_tokens=2)

    with pytest.raises(StatusError) as caught:
        await path.ask([40], max_tokens=2)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_s == 1.0
    assert path.seen.ended == ["refused"]
    leader.allow(None)
    await eventually(lambda: path.router.counts() == (0, 0))
    await path.ask([40], max_tokens=2)
    path.router.close()
    await leader.close()


async def test_a_second_request_with_a_living_id_is_refused_even_when_the_queue_is_full() -> None:
    path = request_path(admission=AdmissionLimits(max_waiting=0))
    for i in range(64):
        await path.ask([30 + i], request_id=str(i), max_tokens=2)

    with pytest.raises(StatusError, match="use Attach") as caught:
        await path.ask([40], request_id="0", max_tokens=2)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("request_id", ["x" * 129, "ü", "a\nb", "\x7f"])
async def test_an_id_is_printable_ascii(path: RequestPath, request_id: str) -> None:
    with pytest.raises(StatusError, match="request_id"):
        await path.ask([11], request_id=request_id, max_tokens=2)
    await path.ask([11], request_id="a b~" * 32, max_tokens=2)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
async def test_a_timeout_is_longer_than_nothing(path: RequestPath, timeout_s: float) -> None:
    with pytest.raises(StatusError, match=r"timeout is .* longer than 0"):
        await path.ask([11], timeout_s=timeout_s, max_tokens=2)
    await path.ask([11], timeout_s=float("inf"), max_tokens=2)


async def test_a_priority_that_the_wire_can_not_carry_is_refused(path: RequestPath) -> None:
    with pytest.raises(StatusError, match="priority is 2147483648"):
        await path.front_door.generate(GenerateCall(prompt=TokenPrompt([11]), priority=2**31))


async def test_no_request_is_too_long_for_one_message_to_a_leader() -> None:
    huge = ModelFacts(name="huge", max_model_len=10**8, vocab_size=2**28)
    path = request_path(model=huge)
    longest = path.intake.model().max_model_len
    subscription = await path.ask([2**28 - 1] * (longest - 1))

    assert submission(subscription.record).ByteSize() < MAX_MESSAGE_BYTES
    with pytest.raises(StatusError, match=f"at most {longest} tokens"):
        await path.ask([1] * longest)


async def test_an_unknown_model_is_named_with_the_one_that_is_served(path: RequestPath) -> None:
    with pytest.raises(StatusError, match=r"no model 'gpt'; 'tiny' is served") as caught:
        await path.front_door.generate(GenerateCall(prompt=TokenPrompt([11]), model="gpt"))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_when_no_group_served_for_too_long_requests_are_refused_at_once(path: RequestPath) -> None:
    path.clock.now += 45.0

    with pytest.raises(StatusError, match="no group has served for 45 s") as caught:
        await path.ask([11], max_tokens=2)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.retry_after_s == 1.0


async def test_a_refused_request_leaves_nothing_behind(path: RequestPath) -> None:
    for prompt in ([], [1000], [11] * 300):
        with pytest.raises(StatusError):
            await path.ask(prompt, request_id="same", max_tokens=2)

    await path.ask([11], request_id="same", max_tokens=2)
    assert path.seen.ended == ["invalid"] * 3
    assert path.router.counts() == (0, 1)


async def test_when_it_closes_what_lives_goes_on_and_nothing_new_comes_in(
    path: RequestPath, leader: Leader
) -> None:
    leader.allow(0)
    subscription = await path.ask([11], max_tokens=5)
    path.front_door.refuse("the server is stopping")
    idle = asyncio.create_task(path.front_door.idle())
    with pytest.raises(StatusError, match="stopping"):
        await path.ask([12], max_tokens=5)
    assert not idle.done()

    leader.allow(None)

    assert len((await read_all(subscription))[0]) == 5
    await idle


async def test_what_is_still_running_when_the_server_ends_can_be_gone_on_with(
    path: RequestPath, leader: Leader
) -> None:
    leader.allow(3)
    subscriptions = [await path.ask([20 + i], request_id=f"r{i}", max_tokens=9) for i in range(70)]
    await eventually(lambda: path.seen.generated == 3)

    path.front_door.end_all("the server has stopped")

    for subscription in subscriptions:
        _, _, ending = await read_all(subscription)
        assert ending.error is not None
        assert ending.error.code is grpc.StatusCode.UNAVAILABLE
    assert path.router.counts() == (0, 0)
    leader.allow(None)
    assert (await read_all(await path.front_door.attach("r69", [])))[0] == leader.expected([89], max_tokens=9)


# --- cancelling and leaving


async def test_cancelling_tells_whether_there_was_something_to_cancel(
    path: RequestPath, leader: Leader
) -> None:
    leader.allow(0)
    subscription = await path.ask([11], request_id="a", max_tokens=5)

    assert path.front_door.cancel("a")
    assert not path.front_door.cancel("a")
    _, _, ending = await read_all(subscription)
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.CANCELLED
    with pytest.raises(StatusError, match="no request 'b'"):
        path.front_door.cancel("b")


async def test_a_request_can_be_cancelled_while_it_is_tokenised(path: RequestPath) -> None:
    call = GenerateCall(prompt=TextPrompt("a " * 2500), request_id="a")
    coming = asyncio.create_task(path.front_door.generate(call))
    await asyncio.sleep(0)

    assert path.front_door.cancel("a")
    with pytest.raises(StatusError):
        await coming
    with pytest.raises(StatusError, match="no request"):
        path.front_door.cancel("a")


async def test_when_the_last_listener_leaves_the_sequence_leaves_the_leader(
    path: RequestPath, leader: Leader
) -> None:
    leader.allow(3)
    first = await path.ask([11], request_id="a", max_tokens=200)
    second = await path.front_door.attach("a", [])
    await eventually(lambda: path.seen.generated == 3)

    path.front_door.leave(first)
    assert first.record.ending is None
    path.front_door.leave(second)
    path.front_door.leave(second)

    await eventually(lambda: leader.running == 0)
    assert first.record.ending is not None
    assert first.record.ending.outcome == "cancelled"


async def test_a_request_counts_once_by_how_it_ended_for_good(path: RequestPath, leader: Leader) -> None:
    for name in ("back soon", "back late", "gone", "unwanted"):
        leader.allow(0)
        path.front_door.leave(await path.ask([11], request_id=name, max_tokens=5))
        leader.allow(None)
        path.clock.now += 9.9
        path.front_door.tick(path.clock.now)
        assert path.seen.ended == []
        if name == "back soon":
            await read_all(await path.front_door.attach(name, []))
            assert path.seen.ended == ["length"]
        if name == "unwanted":
            path.front_door.cancel(name)
        path.clock.now += 0.1
        assert path.front_door.tick(path.clock.now) is not None
        if name == "back late":
            assert path.seen.ended == ["cancelled"]
            await read_all(await path.front_door.attach(name, []))
        path.clock.now += 20.0
        path.front_door.tick(path.clock.now)
        assert len(path.seen.ended) == 1
        path.seen.ended.clear()


async def test_whoever_comes_back_gets_the_rest(path: RequestPath, leader: Leader) -> None:
    whole = ids_of("The sky is blue and the sea is 🚀 too.")
    leader.next_token = script(whole)
    leader.allow(7)
    subscription = await path.ask([11], request_id="a", max_tokens=len(whole))
    await eventually(lambda: path.seen.generated == 7)
    span = await subscription.next()
    assert isinstance(span, TokenSpan)
    path.front_door.leave(subscription)
    leader.allow(None)

    tokens, text, ending = await read_all(await path.front_door.attach("a", whole[:4]))

    assert tokens == whole[4:]
    assert TOKENIZER.decode(whole[:4]) + text == TOKENIZER.decode(whole)
    assert ending.outcome == "length"
    assert list(leader.submissions[-1].emitted_token_ids) == whole[:7]


async def test_who_attaches_while_the_request_is_tokenised_waits_for_it() -> None:
    path, leader = request_path(model=LONG), await Leader().start()
    path.serve(leader)
    text = "a " * 2500
    first = asyncio.create_task(
        path.front_door.generate(
            GenerateCall(
                prompt=TextPrompt(text), request_id="a", sampling=SamplingParams(max_tokens=9, seed=0)
            )
        )
    )
    await asyncio.sleep(0)

    second = await path.front_door.attach("a", [])

    whole = leader.expected(TOKENIZER.encode(text), max_tokens=9)
    assert (await read_all(second))[0] == (await read_all(await first))[0] == whole
    path.router.close()
    path.intake.close()
    await leader.close()


async def test_text_that_may_begin_a_stop_text_is_held_back_from_who_comes_back_later(
    path: RequestPath, leader: Leader
) -> None:
    whole = ids_of("a b END c")
    leader.next_token = script(whole)
    begun = next(n for n in range(len(whole)) if TOKENIZER.decode(whole[:n]).endswith("E"))
    leader.allow(begun)
    subscription = await path.ask([11], request_id="a", max_tokens=len(whole), stop=["END"])
    await eventually(lambda: path.seen.generated == begun)

    path.front_door.end_all("the server has stopped")
    before, text_before, ending = await read_all(subscription)
    leader.allow(None)
    _, text, ended = await read_all(await path.front_door.attach("a", before))

    assert ending.outcome == "unavailable"
    assert (ended.outcome, ended.stop) == ("stop", "END")
    assert text_before + text == "a b "


async def test_who_was_away_does_not_count_as_slow(path: RequestPath, leader: Leader) -> None:
    leader.allow(3)
    subscription = await path.ask([11], request_id="a", max_tokens=5)
    await eventually(lambda: path.seen.generated == 3)
    path.front_door.leave(subscription)
    leader.allow(None)

    await read_all(await path.front_door.attach("a", []))

    assert path.seen.first_tokens == 1
    assert path.seen.gaps == 2 + 1  # none between the third and the fourth token


async def test_what_ended_can_be_read_again_for_a_while(path: RequestPath, leader: Leader) -> None:
    await read_all(await path.ask([11], request_id="a", max_tokens=20))

    whole = leader.expected([11], max_tokens=20)
    assert (await read_all(await path.front_door.attach("a", whole[:15])))[0] == whole[15:]
    assert (await read_all(await path.front_door.attach("a", whole)))[0] == []
    path.clock.now += 121.0
    path.front_door.tick(path.clock.now)
    with pytest.raises(StatusError, match="no request"):
        await path.front_door.attach("a", [])


async def test_tokens_that_are_not_the_requests_are_refused(path: RequestPath, leader: Leader) -> None:
    await read_all(await path.ask([11], request_id="a", max_tokens=5))
    whole = leader.expected([11], max_tokens=5)

    for received, message in (
        ([*whole[:2], 3], r"received_token_ids\[2\] is 3, but"),
        ([*whole, 3], "can't have been received: it ended with 5"),
    ):
        with pytest.raises(StatusError, match=message) as caught:
            await path.front_door.attach("a", received)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(StatusError, match=r"received_token_ids\[5\] is 700; it must be between 0 and 699"):
        await path.front_door.attach("a", [*whole, 700])


async def test_a_cancelled_request_stays_cancelled(path: RequestPath, leader: Leader) -> None:
    leader.allow(0)
    path.front_door.leave(await path.ask([11], request_id="a", max_tokens=5))
    path.front_door.cancel("a")

    _, _, ending = await read_all(await path.front_door.attach("a", []))
    assert ending.outcome == "cancelled"
    assert path.router.counts() == (0, 0)


async def test_requests_of_another_owner_are_unknown(path: RequestPath) -> None:
    await path.ask([11], request_id="a", max_tokens=5)

    with pytest.raises(StatusError, match="no request"):
        path.front_door.cancel("a", owner="somebody else")
    with pytest.raises(StatusError, match="no request"):
        await path.front_door.attach("a", [], owner="somebody else")


async def test_a_caller_who_goes_away_while_its_prompt_is_tokenised_leaves_nothing_behind(
    path: RequestPath,
) -> None:
    call = GenerateCall(prompt=TextPrompt("a " * 2500), request_id="a")
    coming = asyncio.create_task(path.front_door.generate(call))
    await asyncio.sleep(0)
    attaching = asyncio.create_task(path.front_door.attach("a", []))
    await asyncio.sleep(0)
    coming.cancel()

    with pytest.raises(asyncio.CancelledError):
        await coming
    with pytest.raises(StatusError, match="no request 'a'"):
        await attaching
    assert path.seen.ended == ["cancelled"]
    await path.ask([11], request_id="a", max_tokens=2)


async def test_who_leaves_when_the_time_is_over_did_not_cancel(path: RequestPath) -> None:
    subscription = await path.ask([11], timeout_s=2.0, max_tokens=5)
    path.clock.now += 1.99
    path.front_door.leave(subscription)

    assert path.seen.ended == ["deadline"]


# --- callers who know more


async def test_the_callers_tokens_count_where_they_are_more(path: RequestPath, leader: Leader) -> None:
    leader.allow(2)
    await path.ask([11], request_id="a", max_tokens=20)
    await eventually(lambda: path.seen.generated == 2)
    whole = leader.expected([11], max_tokens=20)

    subscription = await path.front_door.attach("a", whole[:9])
    leader.allow(None)

    assert (await read_all(subscription))[0] == whole[9:]
    assert list(leader.submissions[-1].emitted_token_ids) == whole[:9]
    assert leader.cancellations == [leader.submissions[0].sequence_id]


async def test_the_callers_tokens_may_hold_the_end(path: RequestPath) -> None:
    for request_id, received, max_tokens, outcome in (
        ("eos", [*ids_of("yes"), 699], 50, "stop"),
        ("length", ids_of("yes"), len(ids_of("yes")), "length"),
        ("stop text", ids_of("yes END"), 50, "stop"),
    ):
        await path.ask([11], request_id=request_id, max_tokens=max_tokens, stop=["END"])
        tokens, text, ending = await read_all(await path.front_door.attach(request_id, received))
        assert (tokens, text, ending.outcome) == ([], "", outcome)


async def test_a_coordinator_that_was_started_again_goes_on_with_the_callers_tokens(tmp_path: Path) -> None:
    wall = [5000.0]
    file = tmp_path / "state" / "requests.sqlite"
    log = SqliteRequestLog(file, fingerprint="f", wall_clock=lambda: wall[0])
    before = request_path(log=log)
    times = {"a": None, "late": 10.0, "too late": 0.5, "timed": 1000.0, "slow": 1000.0, "unwanted": None}
    for request_id, timeout_s in times.items():
        await before.ask(
            [11, 12], request_id=request_id, timeout_s=timeout_s, max_tokens=20, stop=["nothing"], logprobs=2
        )
    await log.close()  # as the operating system does it for a process that is killed

    wall[0] += 125.0
    log = SqliteRequestLog(file, fingerprint="f", wall_clock=lambda: wall[0])
    after = request_path(log=log)
    restored = log.restore()
    after.front_door.restore(restored)
    leader = await Leader().start()
    after.serve(leader)
    whole = leader.expected([11, 12], max_tokens=20)

    assert {spec.request_id: left_s for spec, left_s in restored} == {
        "a": None,
        "late": -115.0,
        "timed": 875.0,
        "slow": 875.0,
        "unwanted": None,
    }
    assert (await read_all(await after.front_door.attach("a", whole[:6])))[0] == whole[6:]
    assert (await read_all(await after.front_door.attach("timed", [])))[0] == whole
    with pytest.raises(StatusError, match="no request 'too late'"):
        await after.front_door.attach("too late", [])

    for request_id, code in (
        ("late", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("slow", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("unwanted", grpc.StatusCode.CANCELLED),
    ):
        if request_id == "slow":
            after.clock.now += 940.0
        elif request_id == "unwanted":
            after.front_door.cancel(request_id)
        _, _, ending = await read_all(await after.front_door.attach(request_id, whole[:6]))
        assert ending.error is not None
        assert ending.error.code is code

    after.clock.now += 121.0
    after.front_door.tick(after.clock.now)
    await log.close()
    emptied = SqliteRequestLog(file, fingerprint="f")
    assert emptied.restore() == []
    await emptied.close()
    after.router.close()
    await leader.close()


class GatedLog(SqliteRequestLog):
    """Tells only when it is let that a request is on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, fingerprint="f")
        self.gate = asyncio.Event()

    async def admitted(self, spec: RequestSpec, timeout_s: float | None) -> None:
        await super().admitted(spec, timeout_s)
        await self.gate.wait()


async def restored(path: Path) -> list[str]:
    """The ids that the next life of the coordinator finds."""
    log = SqliteRequestLog(path, fingerprint="f")
    ids = [spec.request_id for spec, _ in log.restore()]
    await log.close()
    return ids


async def test_forgetting_an_ended_request_spares_the_row_of_a_new_one_that_takes_its_id(
    tmp_path: Path,
) -> None:
    log = GatedLog(tmp_path / "requests.sqlite")
    log.gate.set()
    path = request_path(log=log)
    path.front_door.leave(await path.ask([11], request_id="a", max_tokens=2))
    path.front_door.cancel("a")
    log.gate.clear()
    coming = asyncio.create_task(path.ask([12], request_id="a", max_tokens=2))
    store = path.front_door._store
    await eventually(lambda: store.is_coming(("", "a")) and not (log._next_write or log._pending))
    path.clock.now += 121.0
    path.front_door.tick(path.clock.now)  # its row is written, but it is not in
    log.gate.set()
    await coming
    await log.close()

    assert await restored(tmp_path / "requests.sqlite") == ["a"]


async def test_the_row_of_a_forgotten_request_goes_also_when_its_id_is_taken_in_vain(tmp_path: Path) -> None:
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f")
    path = request_path(log=log, model=LONG)
    path.front_door.leave(await path.ask([11], request_id="a", max_tokens=2))
    call = GenerateCall(prompt=TextPrompt("a " * 2500), request_id="a")
    coming = asyncio.create_task(path.front_door.generate(call))
    await asyncio.sleep(0)
    path.clock.now += 121.0
    path.front_door.tick(path.clock.now)  # while the prompt is tokenised
    coming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await coming
    await log.close()
    path.intake.close()

    assert await restored(tmp_path / "requests.sqlite") == []


async def test_an_ended_request_keeps_its_row_when_its_id_is_taken_in_vain(tmp_path: Path) -> None:
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f")
    path = request_path(log=log)
    path.front_door.leave(await path.ask([11], request_id="a", max_tokens=2))
    with pytest.raises(StatusError):
        await path.ask([], request_id="a", max_tokens=2)
    await log.close()

    assert await restored(tmp_path / "requests.sqlite") == ["a"]


async def test_a_log_that_can_not_be_written_does_not_stop_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f")
    log._thread.submit(log._database.execute, "DROP TABLE requests").result()
    path = request_path(log=log)

    await path.ask([11], request_id="a", max_tokens=2)

    assert path.router.counts() == (0, 1)
    assert "request_log_failed" in capsys.readouterr().out
    await log.close()


async def test_requests_to_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "requests.sqlite"
    log = SqliteRequestLog(file, fingerprint="one")
    await request_path(log=log).ask([11], max_tokens=2)
    await log.close()

    other = SqliteRequestLog(file, fingerprint="two")
    assert other.restore() == []
    await other.close()


# --- time


async def test_a_request_ends_when_its_time_is_over(path: RequestPath, leader: Leader) -> None:
    leader.allow(3)
    subscription = await path.ask([11], timeout_s=2.0, max_tokens=200)
    await eventually(lambda: path.seen.generated == 3)
    assert path.front_door.tick(path.clock.now + 1.9) == path.clock.now + 2.0

    path.clock.now += 2.0
    path.front_door.tick(path.clock.now)

    tokens, _, ending = await read_all(subscription)
    assert len(tokens) == 3
    assert ending.error is not None
    assert ending.error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "not done within 2 s; 3 tokens" in ending.error.message
    await eventually(lambda: leader.running == 0)


async def test_a_request_whose_time_is_over_is_not_taken_up_again(path: RequestPath) -> None:
    subscription = await path.ask([11], request_id="a", timeout_s=2.0, max_tokens=5)
    path.front_door.leave(subscription)
    path.clock.now += 2.0

    _, _, ending = await read_all(await path.front_door.attach("a", []))
    assert ending.outcome == "deadline"


async def test_the_loop_wakes_for_the_earliest_deadline() -> None:
    path = request_path(clock=time.monotonic)
    keeping_time = asyncio.create_task(path.front_door.run())
    long = await path.ask([11], timeout_s=100.0, max_tokens=5)
    short = await path.ask([11], timeout_s=0.05, max_tokens=5)

    _, _, ending = await read_all(short)

    assert ending.outcome == "deadline"
    assert long.record.ending is None
    keeping_time.cancel()


# --- memory


async def test_a_slow_reader_costs_an_index_and_gets_everything_in_large_pieces(
    path: RequestPath, leader: Leader
) -> None:
    slow = await path.ask([11], request_id="slow", max_tokens=200)
    quick = await path.ask([12], max_tokens=200)

    assert len((await read_all(quick))[0]) == 200
    await eventually(lambda: slow.record.ending is not None)
    span = await slow.next()

    assert isinstance(span, TokenSpan)
    assert list(span.token_ids) == leader.expected([11], max_tokens=200)
    assert min(MAX_SPAN_TOKENS, MAX_SPAN_TOKENS_WITH_LOGPROBS) > 200


async def test_a_piece_is_never_larger_than_a_message_may_be(path: RequestPath, leader: Leader) -> None:
    subscription = await path.ask([11], max_tokens=200, logprobs=20)
    subscription._limit = 64
    await eventually(lambda: subscription.record.ending is not None)

    sizes = []
    while isinstance(span := await subscription.next(), TokenSpan):
        sizes.append(len(span.token_ids))
        assert len(span.logprobs) == len(span.token_ids)
    assert sizes == [64, 64, 64, 8]


async def test_thousands_of_requests_leave_only_what_retention_allows() -> None:
    path = request_path(retention=RetentionLimits(max_ended=50))
    leader = await Leader().start()
    path.serve(leader)
    for i in range(500):
        await path.ask([11], request_id=f"r{i}", timeout_s=1e6, max_tokens=1)
        await eventually(lambda i=i: len(path.seen.ended) > i)  # type: ignore[misc]
        path.front_door.tick(path.clock.now)

    store = path.front_door._store
    assert len(store._ended) == 50
    assert store.unfinished == 0
    assert len(path.front_door._deadlines._heap) < 200
    path.router.close()
    await leader.close()
