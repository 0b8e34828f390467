"""Idempotency-Key and Last-Event-ID: whatever was cut, and wherever, the texts add up to the undisturbed one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ryzanstein_coordinator.intake import GenerateCall
from ryzanstein_coordinator.openai.errors import BadRequestError
from ryzanstein_coordinator.openai.resume import Resume, event_id, read_resume
from ryzanstein_coordinator.openai.sampling import choice_sampling, completion_sampling
from ryzanstein_coordinator.openai.schemas import CompletionRequest
from ryzanstein_coordinator.prompts import TextPrompt
from ryzanstein_coordinator.request_log import SqliteRequestLog

from ..requests.cluster import eventually, request_path
from ..requests.leader import Leader, script
from .serving import CHAT, COMPLETIONS, TOKENIZER, Front, front, ids_of, parse_events, text_of

ANSWER = "Grüße 🙂 und 素早い! 👩‍👩‍👧 Быстрая"
KEY = {"idempotency-key": "k1"}


@pytest.fixture
def answer(leader: Leader) -> list[int]:
    ids = [*ids_of(ANSWER), 699]
    leader.next_token = script(ids)
    return ids


# --- the headers


@pytest.mark.parametrize(
    ("headers", "sequences", "expected"),
    [
        ({}, 1, Resume()),
        ({"idempotency-key": "k"}, 1, Resume("k")),
        ({"idempotency-key": "k", "last-event-id": "7"}, 1, Resume("k", (7,))),
        ({"idempotency-key": "k", "last-event-id": "7,0"}, 2, Resume("k", (7, 0))),
        ({"idempotency-key": "k", "last-event-id": "0"}, 1, Resume("k")),
    ],
)
def test_headers_are_read(headers: dict[str, str], sequences: int, expected: Resume) -> None:
    assert read_resume(headers, sequences=sequences, stream=True) == expected
    assert read_resume(headers, sequences=sequences, stream=False).positions is None


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"idempotency-key": "k" * 121}, "1 to 120"),
        ({"idempotency-key": "ü"}, "ASCII"),
        ({"last-event-id": "7"}, "needs the Idempotency-Key"),
        ({"idempotency-key": "k", "last-event-id": "7,1"}, "counts 2 sequences"),
        ({"idempotency-key": "k", "last-event-id": "-7"}, "no id of an event"),
        ({"idempotency-key": "k", "last-event-id": "99999999999"}, "no id of an event"),
    ],
)
def test_wrong_headers_are_refused_by_name(headers: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        read_resume(headers, sequences=1, stream=True)


def test_every_sequence_has_an_id_of_its_own() -> None:
    assert [Resume("k").request_id(i) for i in range(3)] == ["k", "k#1", "k#2"]
    assert [Resume().request_id(i) for i in range(2)] == ["", ""]
    assert event_id([3, 0]) == "3,0"


# --- the same request again


async def test_the_same_body_is_given_the_same_request(served: Front, leader: Leader) -> None:
    first = await served.ok(COMPLETIONS, KEY, prompt="a", n=2)  # with a seed that was drawn
    again = await served.ok(COMPLETIONS, KEY, prompt="a", n=2)
    assert (again["choices"], again["id"]) == (first["choices"], first["id"])
    assert len(leader.submissions) == 2


async def test_a_running_request_is_joined(served: Front, leader: Leader) -> None:
    leader.budget = 3
    both = [asyncio.create_task(served.ok(COMPLETIONS, KEY, prompt="a")) for _ in range(2)]
    await eventually(lambda: served.path.seen.generated == 3)
    third = asyncio.create_task(served.events(COMPLETIONS, KEY, prompt="a"))
    leader.allow(None)
    replies = await asyncio.gather(*both)
    assert replies[0]["choices"] == replies[1]["choices"]
    assert text_of(await third) == replies[0]["choices"][0]["text"]
    assert len(leader.submissions) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "b"},
        {"prompt": "a", "seed": 4},
        {"prompt": "a", "max_tokens": 9},
        {"prompt": "a", "stop": "x"},
        {"prompt": "a", "logprobs": 1},
        {"prompt": "a", "ignore_eos": True},
    ],
)
async def test_another_body_is_refused(served: Front, leader: Leader, other: dict[str, object]) -> None:
    await served.ok(COMPLETIONS, KEY, prompt="a", seed=3)
    reply = await served.post(COMPLETIONS, KEY, **{"seed": 3, **other})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "idempotency_key_reused"
    assert len(leader.submissions) == 1


async def test_another_body_leaves_a_cut_request_as_it_was(served: Front, leader: Leader) -> None:
    leader.budget = 3
    _, writer = await served.connect(COMPLETIONS, KEY, prompt="a", stream=True)
    await eventually(lambda: served.path.seen.generated == 3)
    writer.transport.abort()
    await eventually(lambda: served.path.router.counts() == (0, 0))
    assert (await served.post(COMPLETIONS, KEY, prompt="b")).status_code == 400
    await eventually(lambda: served.path.router.counts() == (0, 0))
    leader.allow(None)
    assert (await served.ok(COMPLETIONS, KEY, prompt="a"))["usage"]["completion_tokens"] == 16


# --- going on


async def test_from_every_event_the_texts_add_up(served: Front, answer: list[int]) -> None:
    undisturbed = await served.events(COMPLETIONS, KEY, prompt="a", max_tokens=99)
    assert text_of(undisturbed) == ANSWER
    for index, event in enumerate(undisturbed[:-1]):
        headers = {**KEY, "last-event-id": event.event_id}
        rest = await served.events(COMPLETIONS, headers, prompt="a", max_tokens=99)
        assert text_of(undisturbed[: index + 1]) + text_of(rest) == ANSWER
        assert rest[-2].data["choices"][0]["finish_reason"] == "stop"


async def test_a_role_is_not_told_twice(served: Front, answer: list[int]) -> None:
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    events = await served.events(CHAT, KEY, **ask)
    rest = await served.events(CHAT, {**KEY, "last-event-id": events[2].event_id}, **ask)
    assert all("role" not in event.data["choices"][0]["delta"] for event in rest[:-1])
    assert rest[0].data["id"] == events[0].data["id"]


async def test_a_stream_that_was_cut_goes_on_behind_its_last_event(served: Front, leader: Leader) -> None:
    asked: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "max_tokens": 30, "seed": 1, "logprobs": 1}
    whole = await served.ok(COMPLETIONS, **asked)
    leader.budget = 40
    reader, writer = await served.connect(COMPLETIONS, KEY, stream=True, **asked)
    await reader.readuntil(b"\r\n\r\n")
    seen = b""
    while seen.count(b"id: ") < 30:
        seen += await reader.read(400)
    writer.transport.abort()
    await eventually(lambda: served.path.router.counts() == (0, 0))
    chunks = seen.replace(b"\r\n", b"").decode().split("id: ")[1:-1]  # without the sizes of HTTP's chunks
    events = parse_events("\n\n".join("id: " + chunk.rpartition("}")[0] + "}" for chunk in chunks))
    leader.allow(None)
    rest = await served.events(COMPLETIONS, {**KEY, "last-event-id": events[-1].event_id}, **asked)
    for choice in whole["choices"]:
        index = choice["index"]
        assert text_of(events, index) + text_of(rest, index) == choice["text"]
        offsets = [
            offset
            for event in [*events, *rest[:-1]]
            for one in event.data["choices"]
            if one["index"] == index and one["logprobs"]
            for offset in one["logprobs"]["text_offset"]
        ]
        assert offsets == choice["logprobs"]["text_offset"]


async def test_after_a_restart_of_the_coordinator_the_tokens_before_are_not_sent_again(
    leader: Leader, answer: list[int], tmp_path: Path
) -> None:
    cut_at = len(ids_of("Grüße 🙂 und 素")) - 1  # within a character
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 99, "temperature": 1.0}
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f")
    path = request_path(tokenizer=TOKENIZER, log=log)
    path.serve(leader)
    leader.budget = cut_at
    async with front(path) as served:
        _, writer = await served.connect(COMPLETIONS, KEY, stream=True, **asked)
        await eventually(lambda: path.seen.generated == cut_at)
        (record,) = path.front_door._store.living()
        told, seed = record.output.text, record.spec.sampling.seed
        writer.transport.abort()
        await eventually(lambda: path.router.counts() == (0, 0))
        path.front_door._store.forget(float("inf"))
    await log.close()
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f")
    path = request_path(tokenizer=TOKENIZER, log=log)
    path.front_door.restore(log.restore())
    await leader.die()
    new = Leader(next_token=script(answer))
    await new.start()
    path.serve(new)
    async with front(path) as served:
        rest = await served.events(COMPLETIONS, {**KEY, "last-event-id": str(cut_at)}, **asked)
        assert told + text_of(rest) == ANSWER
        assert new.submissions[0].sampling.seed == seed
        assert list(new.submissions[0].emitted_token_ids) == []
    await log.close()
    await new.close()


async def test_a_deadline_that_passed_while_no_coordinator_ran_is_one_and_not_an_unknown_request(
    tmp_path: Path,
) -> None:
    """The request was sent over gRPC with a deadline, and is asked for over HTTP."""
    wall = [5000.0]
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f", wall_clock=lambda: wall[0])
    path = request_path(tokenizer=TOKENIZER, log=log)
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 9, "seed": 0}
    sampling = choice_sampling(completion_sampling(CompletionRequest(**asked)), 0)
    prompt = TextPrompt("a")
    call = GenerateCall(prompt=prompt, sampling=sampling, request_id="k1", timeout_s=10.0)
    await path.front_door.generate(call)
    await log.close()
    wall[0] += 60.0
    log = SqliteRequestLog(tmp_path / "requests.sqlite", fingerprint="f", wall_clock=lambda: wall[0])
    path = request_path(tokenizer=TOKENIZER, log=log)
    path.front_door.restore(log.restore())
    async with front(path) as served:
        reply = await served.post(COMPLETIONS, KEY, **asked)
        assert reply.status_code == 504
        assert "time was over while the coordinator was not running" in reply.json()["error"]["message"]
        (failed,) = await served.events(COMPLETIONS, {**KEY, "last-event-id": "4"}, **asked)
        assert failed.data["error"]["code"] == "deadline_exceeded"
    await log.close()


async def test_what_nobody_knows_any_more_can_not_be_gone_on_with(served: Front) -> None:
    reply = await served.post(COMPLETIONS, {**KEY, "last-event-id": "4"}, prompt="a", stream=True)
    assert reply.status_code == 404
    assert "there is no request 'k1'" in reply.json()["error"]["message"]


async def test_more_tokens_than_there_were_can_not_have_been_received(served: Front, leader: Leader) -> None:
    await served.ok(COMPLETIONS, KEY, prompt="a", max_tokens=5)
    reply = await served.post(
        COMPLETIONS, {**KEY, "last-event-id": "6"}, prompt="a", max_tokens=5, stream=True
    )
    assert reply.status_code == 400
    assert "6 tokens" in reply.json()["error"]["message"]
    leader.budget = 0
    other = {"idempotency-key": "k2"}
    running = asyncio.create_task(served.ok(COMPLETIONS, other, prompt="a", max_tokens=5))
    await eventually(lambda: leader.running == 1)
    late = asyncio.create_task(
        served.events(COMPLETIONS, {**other, "last-event-id": "6"}, prompt="a", max_tokens=5)
    )
    await eventually(lambda: sum(len(r.listeners) for r in served.path.front_door._store.living()) == 2)
    leader.allow(None)
    await running
    (failed,) = await late
    assert failed.kind == "error"
