"""Bad requests, full queues, dead groups, vanished clients: what is said, and what is left behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ryzanstein.wire import MAX_MESSAGE_BYTES
from ryzanstein_coordinator.admission import AdmissionLimits
from ryzanstein_coordinator.openai.answer import read
from ryzanstein_coordinator.router import RouterConfig

from ..requests.cluster import eventually, request_path
from ..requests.leader import Leader, script
from .serving import CHAT, COMPLETIONS, TOKENIZER, Front, front, ids_of, parse_events

ASK = [{"role": "user", "content": "hi"}]
DEEP: Any = json.loads("[" * 60 + "]" * 60)


@pytest.mark.parametrize(
    ("where", "body", "param", "says"),
    [
        (CHAT, {}, "messages", "Field required"),
        (CHAT, {"messages": []}, None, "messages is empty"),
        (CHAT, {"messages": ["hi"]}, "messages", "entry 0 is not an object"),
        (CHAT, {"messages": [{"content": "hi"}]}, "messages", "messages[0].role must be a text"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages", "messages[0].content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages",
            "messages[0].content[0] is of type 'image_url'",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "", "x": DEEP}]}, "messages", "too deeply"),
        (CHAT, {"messages": ASK, "chat_template_kwargs": {"x": DEEP}}, "chat_template_kwargs", "too deeply"),
        (CHAT, {"messages": ASK, "tools": [{"type": "function"}]}, "tools", "not supported"),
        (CHAT, {"messages": ASK, "response_format": {"type": "json_object"}}, "response_format", "'json_ob"),
        (CHAT, {"messages": ASK, "top_logprobs": 2}, "top_logprobs", "logprobs"),
        (CHAT, {"messages": ASK, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        (CHAT, {"messages": ASK, "max_completion_tokens": 0}, "max_completion_tokens", "between 1"),
        (COMPLETIONS, {}, "prompt", "Field required"),
        (COMPLETIONS, {"prompt": None}, "prompt", "must be a text"),
        (COMPLETIONS, {"prompt": ""}, None, "empty"),
        (COMPLETIONS, {"prompt": []}, "prompt", "not empty"),
        (COMPLETIONS, {"prompt": [1, 2.5]}, "prompt", "prompt[1] is 2.5"),
        (COMPLETIONS, {"prompt": [1, True]}, "prompt", "prompt[1] is True"),
        (COMPLETIONS, {"prompt": [[1], {}]}, "prompt", "prompt[1] must be"),
        (COMPLETIONS, {"prompt": [1, 700]}, None, "700"),
        (COMPLETIONS, {"prompt": [1, 2**70]}, None, "must be between 0 and 699"),
        (COMPLETIONS, {"prompt": "\ud800"}, None, "surrogate"),
        (COMPLETIONS, {"prompt": [[5]] * 600}, "prompt", "at most 512"),
        (COMPLETIONS, {"prompt": [[5]] * 100, "n": 100}, "n", "at most 512"),
        (COMPLETIONS, {"prompt": "a", "n": 0}, "n", "between 1 and 128"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens", "between 1"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 2**40}, "max_tokens", "between 1"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 300}, None, "max_tokens is 300"),
        (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, None, "temperature is -1"),
        (COMPLETIONS, {"prompt": "a", "top_p": 0}, None, "top_p"),
        (COMPLETIONS, {"prompt": "a", "top_k": -2}, "top_k", "between -1"),
        (COMPLETIONS, {"prompt": "a", "seed": 2**64}, "seed", "between"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "valid integer"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias", "-1"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"5": 1e60}}, "logit_bias", "between -100 and 100"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": dict.fromkeys(range(2000), 1)}, "logit_bias", "2000"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"\ud800": 1}}, "logit_bias", "valid string"),
        (COMPLETIONS, {"prompt": "a", "stop": [""]}, None, "stop[0] has 0 characters"),
        (COMPLETIONS, {"prompt": "a", "stop": ["a", 1]}, "stop", "not a text"),
        (COMPLETIONS, {"prompt": "a", "stop": "\ud800"}, "stop", "surrogate"),
        (COMPLETIONS, {"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids[0]"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs", "between 0 and 20"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ("/detokenize", {"tokens": ["a"]}, "tokens", "entry 0 is not an integer"),
        ("/detokenize", {"tokens": [900]}, None, "token_ids[0] is 900"),
    ],
)
async def test_a_bad_field_is_400_and_named(
    served: Front, leader: Leader, where: str, body: dict[str, Any], param: str | None, says: str
) -> None:
    text = json.dumps(body)  # httpx refuses half surrogates, which JSON can write
    reply = await served.client.post(where, content=text, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert leader.submissions == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'"\xff"', b"[" * 100_000, b"9" * 10_000, b"{'a': 1}", b"null"]
)
async def test_what_is_no_json_object_is_400(served: Front, body: bytes) -> None:
    for where in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
        reply = await served.client.post(where, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_the_page_that_describes_the_api_promises_no_422(served: Front) -> None:
    page = (await served.client.get("/openapi.json")).json()
    for methods in page["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            body = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert body == {"$ref": "#/components/schemas/Failure"}


async def test_unknown_fields_and_nulls_are_tolerated(served: Front) -> None:
    nulls = dict.fromkeys(["model", "n", "stop", "seed", "logit_bias", "logprobs", "stream_options", "top_k"])
    for where, prompt in ((CHAT, {"messages": ASK}), (COMPLETIONS, {"prompt": "a"})):
        await served.ok(where, **prompt, **nulls, user="me", store=True, metadata={"a": 1}, max_tokens=1)


async def test_contents_may_be_lists_of_texts(served: Front, leader: Leader) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await served.ok(CHAT, messages=[{"role": "user", "content": parts}, {"role": "assistant"}], max_tokens=1)
    prompt = TOKENIZER.decode(list(leader.submissions[0].prompt_token_ids))
    assert prompt == "<|user|>user:one\ntwo</s><|user|>assistant:</s>"


async def test_an_unknown_model_or_path_or_method_has_an_openai_body(served: Front) -> None:
    reply = await served.post(CHAT, model="gpt", messages=ASK)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert (await served.post("/v1/embeddings")).json()["error"]["message"] == "Not Found"
    reply = await served.client.get(CHAT)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json()["error"]["message"] == "Method Not Allowed"


async def test_every_reply_has_the_clients_id_if_it_is_a_valid_one(served: Front) -> None:
    for path in ("/v1/models", "/nothing"):
        reply = await served.client.get(path, headers={"x-request-id": "mine-1"})
        assert reply.headers["x-request-id"] == "mine-1"
        for bad in ("has blanks", "x" * 129, ""):
            reply = await served.client.get(path, headers={"x-request-id": bad})
            assert reply.headers["x-request-id"].startswith("req-")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: Front) -> None:
    async def forever() -> Any:
        sent = 0
        while sent <= MAX_MESSAGE_BYTES:
            yield b"x" * 2**20
            sent += 2**20

    for content in (b"x" * (MAX_MESSAGE_BYTES + 1), forever()):
        reply = await served.client.post(
            COMPLETIONS, content=content, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 413
        assert "bytes" in reply.json()["error"]["message"]
        assert reply.headers["x-request-id"]


async def test_a_defect_is_500_without_its_text(served: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("secret")

    monkeypatch.setattr(served.path.intake, "model", broken)
    reply = await served.client.get("/v1/models")
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "internal error (KeyError)"
    assert reply.headers["x-request-id"]


async def test_a_full_queue_is_429_with_a_delay(leader: Leader) -> None:
    leader.max_num_seqs, leader.budget = 1, 0
    path = request_path(tokenizer=TOKENIZER, admission=AdmissionLimits(max_waiting=0))
    path.serve(leader)
    async with front(path) as served:
        _, writer = await served.connect(COMPLETIONS, prompt="a")
        await eventually(lambda: leader.running == 1)
        reply = await served.post(COMPLETIONS, prompt="b")
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(reply.headers["retry-after"]) >= 1
        assert int(reply.headers["retry-after-ms"]) > 0
        writer.close()


async def test_when_the_queue_is_full_a_body_is_not_read_and_the_connection_goes_on(leader: Leader) -> None:
    leader.max_num_seqs, leader.budget = 1, 0
    path = request_path(tokenizer=TOKENIZER, admission=AdmissionLimits(max_waiting=0))
    path.serve(leader)
    async with front(path) as served:
        _, running = await served.connect(COMPLETIONS, {"idempotency-key": "mine"}, prompt="a")
        await eventually(lambda: leader.running == 1)
        reader, refused = await served.connect(COMPLETIONS, prompt="b" * 100_000, temperature="no number")
        for _ in range(2):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 429")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            refused.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nnot JSON!")
        assert path.seen.ended == ["refused", "refused"]
        ending = {"connection": "TE, close", "content-type": "application/json"}
        late = await served.client.post(COMPLETIONS, content=b"not JSON!", headers=ending)
        assert late.status_code == 400, "a connection that ends with its reply is read first"
        mine = {"idempotency-key": "mine"}
        again = await served.post(COMPLETIONS, mine, prompt="another")  # is read: it may be what runs already
        assert (again.status_code, again.json()["error"]["code"]) == (400, "idempotency_key_reused")
        running.close()
        refused.close()


async def test_of_a_batch_that_does_not_fit_nothing_stays(leader: Leader) -> None:
    leader.max_num_seqs, leader.budget = 2, 0
    path = request_path(tokenizer=TOKENIZER, admission=AdmissionLimits(max_waiting=1))
    path.serve(leader)
    async with front(path) as served:
        assert (await served.post(COMPLETIONS, prompt=["a", "b", "c", "d"])).status_code == 429
        await eventually(lambda: path.router.counts() == (0, 0))


async def test_without_a_group_it_is_503_with_a_delay() -> None:
    path = request_path(tokenizer=TOKENIZER, router=RouterConfig(no_group_grace_s=5.0))
    path.clock.now += 60.0
    async with front(path) as served:
        for stream in (True, False):
            reply = await served.post(CHAT, messages=ASK, stream=stream)
            assert reply.status_code == 503
            assert reply.json()["error"]["type"] == "server_error"
            assert reply.headers["retry-after"] == "1"


async def test_a_failure_in_mid_stream_is_the_last_event(served: Front, leader: Leader) -> None:
    leader.next_token, leader.budget = script(ids_of("one two three four")), 3
    reading = asyncio.create_task(served.events(CHAT, messages=ASK, max_tokens=50))
    await eventually(lambda: served.path.seen.generated == 3)
    served.path.front_door.end_all("the server has stopped")
    *chunks, last = await reading
    assert all(chunk.kind == "" for chunk in chunks)
    assert chunks[-1].event_id == "3"
    assert last.kind == "error"
    assert last.data["error"]["code"] == "unavailable"
    assert last.data["error"]["message"] == "the server has stopped"


async def test_a_failure_before_a_whole_reply_is_its_status(served: Front, leader: Leader) -> None:
    leader.budget = 3
    asking = asyncio.create_task(served.post(CHAT, messages=ASK, max_tokens=50))
    await eventually(lambda: served.path.seen.generated == 3)
    served.path.front_door.end_all("the server has stopped")
    reply = await asking
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("budget", [0, 3])
async def test_a_client_that_goes_away_frees_its_places(
    served: Front, leader: Leader, stream: bool, budget: int
) -> None:
    leader.budget = budget
    _, writer = await served.connect(COMPLETIONS, prompt=["a", "b"], n=2, stream=stream, max_tokens=50)
    await eventually(lambda: leader.running == 4 and served.path.seen.generated == budget)
    writer.transport.abort()
    await eventually(lambda: served.path.router.counts() == (0, 0))
    await eventually(lambda: len(leader.cancellations) == 4)
    served.path.clock.now += 10.0
    served.path.front_door.tick(served.path.clock.now)
    assert served.path.seen.ended == ["cancelled"] * 4


async def test_a_reader_that_stands_still_frees_its_place_when_it_goes(served: Front, leader: Leader) -> None:
    """Its generator waits for the socket then, not for a token."""
    many = [f"prompt {i}" for i in range(60)]
    reader, writer = await served.connect(
        COMPLETIONS, prompt=many, stream=True, max_tokens=200, logprobs=20, ignore_eos=True
    )
    await reader.readuntil(b"data: ")
    await eventually(lambda: served.path.seen.generated > 3000)
    writer.transport.abort()
    await eventually(lambda: served.path.router.counts() == (0, 0))


async def test_a_silent_stream_says_that_it_lives(served: Front, leader: Leader) -> None:
    leader.budget = 0
    subscription = await served.path.ask([5], max_tokens=2)
    items = read([subscription], idle_s=0.01)
    assert await anext(items) is None
    leader.allow(None)
    seen = [item async for item in items if item is not None]
    assert [index for index, _ in seen] == [0] * len(seen)
    assert subscription.index == 2
    assert parse_events(": nothing new\n\n") == []
