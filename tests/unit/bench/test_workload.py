"""What is asked for, and how an answer over HTTP is read."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from ryzanstein.program import ProgramError
from ryzanstein_client import NotFound
from ryzanstein_client.bench.fronts import AnswerError, HttpFront, RefusedError
from ryzanstein_client.bench.lengths import parse_length
from ryzanstein_client.bench.workload import Ask, from_file, synthetic


def test_random_prompts_are_the_same_with_the_same_seed_and_begin_differently() -> None:
    def first(seed: int) -> list[Ask]:
        vocabulary = range(100, 200)
        return list(
            itertools.islice(synthetic(vocabulary, parse_length("8-16"), parse_length("4"), seed), 50)
        )

    assert first(1) == first(1) != first(2)
    assert len({ask.prompt[:4] for ask in first(1)}) == 50
    assert {len(ask.prompt) for ask in first(1)} <= set(range(8, 17))
    assert {ask.max_tokens for ask in first(1)} == {4}


def test_prompts_of_a_file_come_in_their_order_again_and_again(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    lines = [{"prompt": "Once"}, {"messages": chat, "max_tokens": 7}, {"prompt": [1, 2]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    found = list(itertools.islice(from_file(path, parse_length("5"), 0), 4))
    assert found == [Ask(5, "Once"), Ask(7, messages=tuple(chat)), Ask(5, (1, 2)), Ask(5, "Once")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "a"}\nnonsense', "line 2: not JSON"),
        ("[1]", "line 1: must be an object"),
        ("{}", "line 1: must be an object"),
        ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
        ('{"prompt": 5}', '"prompt" must be a text or token ids'),
        ('{"messages": "hi"}', '"messages" a list'),
        ('{"prompt": "a", "max_tokens": 0}', '"max_tokens" must be'),
    ],
)
def test_a_file_that_can_not_be_used_is_named_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProgramError, match=named) as caught:
        from_file(path, parse_length("5"), 0)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def events(*chunks: tuple[str | None, dict[str, Any] | str]) -> str:
    """Server-sent events with their ids, if they have one."""
    text = ""
    for event_id, data in chunks:
        text += "" if event_id is None else f"id: {event_id}\n"
        text += f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
    return text


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"text": text}], "usage": None}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}


def ask(reply: httpx.Response, **options: Any) -> tuple[int, list[int], dict[str, Any]]:
    """→ tokens of the prompt, arrivals, the body that was sent, against a server that gives this reply."""
    sent: list[dict[str, Any]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        sent.append({"path": request.url.path, **json.loads(request.content)})
        return reply

    async def run() -> tuple[int, list[int]]:
        front = HttpFront(
            "http://server/v1", headers={}, ca_file=None, model=options.get("model"), temperature=0.0,
            ignore_eos=True, timeout_s=5.0, transport=httpx.MockTransport(serve),
        )  # fmt: skip
        arrivals: list[int] = []
        try:
            await front.check()
            request = options.get("request", Ask(4, (1, 2, 3)))
            return await front.run(request, arrivals.append), arrivals
        finally:
            await front.aclose()

    prompt_tokens, arrivals = asyncio.run(run())
    return prompt_tokens, arrivals, sent[0]


def test_ids_of_events_count_the_tokens() -> None:
    body = events(("1", piece("a")), ("3", piece("")), ("3", piece("bc")), ("3", USAGE), (None, "[DONE]"))
    prompt_tokens, arrivals, sent = ask(httpx.Response(200, text=body))
    assert (prompt_tokens, arrivals) == (9, [1, 2])
    assert (sent["path"], sent["prompt"], sent["max_tokens"]) == ("/v1/completions", [1, 2, 3], 4)
    assert sent["stream_options"] == {"include_usage": True}


def test_another_servers_events_count_one_token_each_if_they_hold_text() -> None:
    first = {"choices": [{"delta": {"role": "assistant"}}]}
    later = {"choices": [{"delta": {"content": "a"}}]}
    body = events((None, first), (None, later), (None, later), (None, USAGE), (None, "[DONE]"))
    conversation = Ask(4, messages=({"role": "user", "content": "Hello"},))
    prompt_tokens, arrivals, sent = ask(httpx.Response(200, text=body), request=conversation)
    assert (prompt_tokens, arrivals) == (9, [1, 1])
    assert sent["path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("header", "after_s"),
    [
        ("2", 2.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:48:00 GMT", 0.0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 0.1),
        ("soon", 0.1),
        (None, 0.1),
    ],
)
def test_a_refusal_says_in_seconds_or_by_a_date_when_to_come_back(
    header: str | None, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ryzanstein_client.bench.fronts.time.time", lambda: 784111740.0)  # 08:49:00
    with pytest.raises(RefusedError) as refused:
        ask(httpx.Response(429, headers={} if header is None else {"retry-after": header}))
    assert refused.value.retry_after_s == after_s


def test_a_full_queue_is_a_refusal_and_other_replies_are_failures() -> None:
    with pytest.raises(RefusedError):
        ask(httpx.Response(429))
    with pytest.raises(AnswerError, match="HTTP 503: away"):
        ask(httpx.Response(503, text="away"))
    failed = "event: error\n" + events((None, {"error": {"message": "a defect"}}))
    with pytest.raises(AnswerError, match="in the stream: a defect"):
        ask(httpx.Response(200, text=failed))
    with pytest.raises(NotFound, match="no model 'x'; the server has m"):
        ask(httpx.Response(200), model="x")
