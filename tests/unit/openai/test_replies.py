"""What OpenAI clients get: whole replies, streams, their numbers, in both APIs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..requests.cluster import eventually
from ..requests.leader import Leader, script
from .serving import CHAT, COMPLETIONS, TOKENIZER, Front, ids_of, text_of

ASK = [{"role": "user", "content": "hi"}]
ANSWER = "Grüße 🙂 und 素早い!"


@pytest.fixture
def answer(leader: Leader) -> list[int]:
    """What the leader says to everything, and its end."""
    ids = [*ids_of(ANSWER), 699]
    leader.next_token = script(ids)
    return ids


async def test_a_whole_chat_reply(served: Front, leader: Leader, answer: list[int]) -> None:
    reply = await served.post(CHAT, model="tiny", messages=ASK, seed=5)
    body = reply.json()
    prompt = list(leader.submissions[0].prompt_token_ids)
    assert TOKENIZER.decode(prompt) == "<|user|>user:hi</s>"
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(answer),
        "total_tokens": len(prompt) + len(answer),
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert reply.headers["x-ryzanstein-seed"] == "5"


async def test_a_chat_stream_begins_with_the_first_text_and_ends_with_done(
    served: Front, answer: list[int]
) -> None:
    events = await served.events(CHAT, messages=ASK)
    assert events[-1].data == "[DONE]"
    chunks = [event.data for event in events[:-1]]
    assert {(chunk["object"], chunk["id"]) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0]["id"])
    }
    assert text_of(events) == ANSWER
    first, *_, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"]["role"] == "assistant"
    assert first["delta"]["content"]
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_comes_in_a_last_chunk_without_choices_if_asked_for(
    served: Front, answer: list[int]
) -> None:
    events = await served.events(CHAT, messages=ASK, stream_options={"include_usage": True})
    *chunks, usage, done = [event.data for event in events]
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(answer)


async def test_the_id_of_an_event_is_the_number_of_tokens_up_to_it(served: Front, answer: list[int]) -> None:
    events = await served.events(COMPLETIONS, prompt="hi", max_tokens=100)
    told = ""
    for event in events[:-2]:
        told += event.data["choices"][0]["text"]
        # The tokens before hold no more than was told: what is left of a character waits for its end.
        assert TOKENIZER.decode(answer[: int(event.event_id)]).rstrip("\ufffd") == told
    assert events[-2].event_id == str(len(answer))


async def test_an_answer_without_text_still_has_a_role(served: Front, leader: Leader) -> None:
    leader.next_token = script([699])
    events = await served.events(CHAT, messages=ASK)
    (choice,) = events[0].data["choices"]
    assert (choice["delta"], choice["finish_reason"]) == ({"role": "assistant", "content": ""}, "stop")


async def test_a_completion_has_16_tokens_unless_told_otherwise(served: Front) -> None:
    body = await served.ok(COMPLETIONS, prompt="hi")
    assert body["object"] == "text_completion"
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"
    assert (await served.ok(COMPLETIONS, prompt="hi", max_tokens=3))["usage"]["completion_tokens"] == 3


async def test_a_chat_goes_up_to_the_length_limit_unless_told_otherwise(served: Front) -> None:
    usage = (await served.ok(CHAT, messages=ASK))["usage"]
    assert usage["total_tokens"] == 256
    usage = (await served.ok(CHAT, messages=ASK, max_tokens=9, max_completion_tokens=4))["usage"]
    assert usage["completion_tokens"] == 4


async def test_prompts_come_as_texts_or_token_ids_alone_or_in_a_batch(served: Front, leader: Leader) -> None:
    texts = [ids_of("one"), ids_of("two")]
    for prompt, expected in [
        ("one", [[TOKENIZER.encode("one")[0], *texts[0]]]),
        (texts[0], [texts[0]]),
        (["one", "two"], [TOKENIZER.encode("one"), TOKENIZER.encode("two")]),
        (texts, texts),
        (["one", texts[1]], [TOKENIZER.encode("one"), texts[1]]),
    ]:
        leader.submissions.clear()
        body = await served.ok(COMPLETIONS, prompt=prompt, max_tokens=2, seed=0)
        assert [list(one.prompt_token_ids) for one in leader.submissions] == expected
        assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
        wanted = [TOKENIZER.decode(leader.expected(ids, max_tokens=2)) for ids in expected]
        assert [choice["text"] for choice in body["choices"]] == wanted
        assert body["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_n_sequences_share_a_seed_and_differ_by_their_number(served: Front, leader: Leader) -> None:
    body = await served.ok(COMPLETIONS, prompt=["a", "b"], n=3, max_tokens=4)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [one.sampling.choice for one in leader.submissions] == [0, 1, 2, 0, 1, 2]
    assert len({one.sampling.seed for one in leader.submissions}) == 1
    assert body["usage"]["completion_tokens"] == 24
    assert body["usage"]["prompt_tokens"] == len(TOKENIZER.encode("a")) + len(TOKENIZER.encode("b"))


async def test_a_stream_of_several_sequences_is_that_of_each(served: Front) -> None:
    asked: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "max_tokens": 12, "seed": 3}
    whole = await served.ok(COMPLETIONS, **asked)
    events = await served.events(COMPLETIONS, **asked)
    for choice in whole["choices"]:
        assert text_of(events, choice["index"]) == choice["text"]
    assert events[-2].event_id == "12,12,12,12"
    ends = [c for e in events[:-1] for c in e.data["choices"] if c["finish_reason"]]
    assert sorted(end["index"] for end in ends) == [0, 1, 2, 3]


async def test_echo_puts_the_prompt_before_the_first_text(served: Front, answer: list[int]) -> None:
    for prompt in ("say: ", ids_of("say: ")):
        body = await served.ok(COMPLETIONS, prompt=prompt, echo=True, max_tokens=50)
        assert body["choices"][0]["text"] == "say: " + ANSWER
        events = await served.events(COMPLETIONS, prompt=prompt, echo=True, max_tokens=50)
        assert events[0].data["choices"][0]["text"] == "say: Grüße"
        assert text_of(events) == "say: " + ANSWER


async def test_a_stop_text_is_not_shown(served: Front, answer: list[int]) -> None:
    for stop in ("und", ["xyz", "und"]):
        body = await served.ok(CHAT, messages=ASK, stop=stop)
        assert body["choices"][0]["message"]["content"] == "Grüße 🙂 "
        assert body["choices"][0]["finish_reason"] == "stop"
        assert text_of(await served.events(CHAT, messages=ASK, stop=stop)) == "Grüße 🙂 "


async def test_chat_logprobs(served: Front, answer: list[int]) -> None:
    body = await served.ok(CHAT, messages=ASK, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == len(answer)
    joined = b"".join(bytes(entry["bytes"]) for entry in content[:-1])
    assert joined.decode() == ANSWER
    assert content[0] == {
        "token": "Grüße", "logprob": -0.25, "bytes": list("Grüße".encode()),
        "top_logprobs": [{"token": "Grüße", "logprob": -0.25, "bytes": list("Grüße".encode())}] * 2,
    }  # fmt: skip
    events = await served.events(CHAT, messages=ASK, logprobs=True, top_logprobs=2)
    streamed = [e.data["choices"][0]["logprobs"] for e in events[:-1]]
    assert [entry for part in streamed if part for entry in part["content"]] == content
    alone = await served.ok(CHAT, messages=ASK, logprobs=True)
    assert alone["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_completion_logprobs_name_every_token_and_where_its_text_begins(
    served: Front, answer: list[int]
) -> None:
    body = await served.ok(COMPLETIONS, prompt="hi", logprobs=1, max_tokens=50)
    choice = body["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(answer)
    assert logprobs["token_logprobs"] == [-0.25] * len(answer)
    assert logprobs["top_logprobs"][0] == {"Grüße": -0.25}
    assert any(token.startswith("bytes:\\x") for token in logprobs["tokens"])
    for token, offset in zip(logprobs["tokens"][:-1], logprobs["text_offset"], strict=False):
        assert token.startswith("bytes:") or choice["text"].startswith(token, offset)
    events = await served.events(COMPLETIONS, prompt="hi", logprobs=1, max_tokens=50)
    parts = [e.data["choices"][0]["logprobs"] for e in events[:-2]]
    for name in ("tokens", "text_offset", "token_logprobs"):
        assert [value for part in parts for value in part[name]] == logprobs[name]
    nothing = await served.ok(COMPLETIONS, prompt="hi", logprobs=0, max_tokens=2)
    assert nothing["choices"][0]["logprobs"]["top_logprobs"] is None


async def test_echo_with_logprobs_has_those_of_the_prompt_too(served: Front, answer: list[int]) -> None:
    ids = TOKENIZER.encode("Grüße 🙂")  # with the special one before it, which has no text
    asked: dict[str, Any] = {"prompt": [ids, ids_of("x")], "echo": True, "logprobs": 1, "max_tokens": 2}
    body = await served.ok(COMPLETIONS, **asked)
    first, second = body["choices"]
    shown = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert first["text"] == shown + TOKENIZER.decode(answer[:2])
    logprobs = first["logprobs"]
    assert logprobs["token_logprobs"] == [None, *(float(-i) for i in ids[1:]), -0.25, -0.25]
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["top_logprobs"][1]) == 2  # the most probable one, and the prompt's own
    assert logprobs["text_offset"][len(ids)] == len(shown)
    assert len(logprobs["text_offset"]) == len(logprobs["tokens"]) == len(ids) + 2
    assert second["logprobs"]["token_logprobs"] == [None, *(-float(i) for i in ids_of("x")[1:]), -0.25, -0.25]
    events = await served.events(COMPLETIONS, **asked)
    for whole in (first, second):
        assert text_of(events, whole["index"]) == whole["text"]
        parts = [
            c["logprobs"] for e in events[:-1] for c in e.data["choices"] if c["index"] == whole["index"]
        ]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [v for part in parts if part for v in part[name]] == whole["logprobs"][name]


async def test_logprobs_of_a_prompt_outlast_its_group(
    served: Front, leader: Leader, answer: list[int]
) -> None:
    leader.budget = 1
    asked: dict[str, Any] = {"prompt": ids_of("Grüße 🙂"), "echo": True, "logprobs": 0, "max_tokens": 5}
    asking = asyncio.create_task(served.ok(COMPLETIONS, **asked))
    await eventually(lambda: served.path.seen.generated == 1)
    served.path.router.group_lost("g0", 1, "a test")
    leader.epoch = 2
    served.path.serve(leader)  # which computes the prompt again, and tells its logprobs again
    leader.allow(None)
    logprobs = (await asking)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][1:] == [-float(i) for i in asked["prompt"][1:]] + [-0.25] * 5
    assert len(leader.submissions) == 2


async def test_the_model_is_listed_with_its_length(served: Front) -> None:
    (card,) = (await served.client.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 256)
    assert (await served.client.get("/v1/models/tiny")).json() == card
    missing = await served.client.get("/v1/models/some/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_detokenize(served: Front) -> None:
    told = await served.ok("/tokenize", model="tiny", prompt="The sky", return_token_strs=True)
    assert told["tokens"] == TOKENIZER.encode("The sky")
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 256)
    assert told["token_strs"][0] == "<s>"
    assert (await served.ok("/tokenize", prompt="The sky", add_special_tokens=False))["tokens"] == ids_of(
        "The sky"
    )
    assert (await served.ok("/tokenize", messages=ASK))["tokens"] == ids_of("<|user|>user:hi</s>")
    assert await served.ok("/detokenize", tokens=told["tokens"]) == {"prompt": "<s>The sky"}
    both: dict[str, Any] = {"prompt": "a", "messages": ASK}
    for body in ({}, both):
        assert (await served.post("/tokenize", **body)).status_code == 400
