"""OpenAI's own client against a cluster of real processes: the tokens are those of the gRPC client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ryzanstein_client import Client

from .harness import BUNDLED_MODEL, Cluster

openai = pytest.importorskip("openai")

MODEL = "bundled_model"
ASK: Any = [{"role": "user", "content": "What is 347 + 285?"}]


@pytest.fixture
def api(two_ranks: Cluster) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{two_ranks.http}/v1", api_key="unused", max_retries=0) as api:
        yield api


def address(cluster: Cluster) -> tuple[str, int]:
    host, _, port = cluster.http.removeprefix("http://").rpartition(":")
    return host, int(port)


def read_stream(
    cluster: Cluster, body: dict[str, Any], headers: dict[str, str], *, cut_after: int | None = None
) -> tuple[str, str]:
    """The text of a streamed completion and the id of the last event; the socket is cut after so many events, or when
    the coordinator is gone."""
    text, last = "", ""
    connection = http.client.HTTPConnection(*address(cluster), timeout=60)
    try:
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({"model": MODEL, "stream": True, **body}),
            {"content-type": "application/json", **headers},
        )
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        event_id, events = "", 0
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            for line in reply:
                name, _, value = line.decode().strip().partition(": ")
                if name == "id":
                    event_id = value
                elif name == "data" and value != "[DONE]":
                    text += json.loads(value)["choices"][0]["text"]
                    last, events = event_id, events + 1
                if events == cut_after:
                    break
    finally:
        connection.close()
    return text, last


def test_a_chat_answer_is_the_grpc_clients(api: Any, client: Client) -> None:
    expected = client.chat(ASK, temperature=0.0, max_tokens=200)
    answer = api.chat.completions.create(model=MODEL, messages=ASK, temperature=0, max_completion_tokens=200)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.model == MODEL


def test_a_chat_stream_with_usage(api: Any, client: Client) -> None:
    expected = client.chat(ASK, temperature=0.0, max_tokens=200)
    stream = api.chat.completions.create(
        model=MODEL, messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage.completion_tokens == len(expected.token_ids)


def test_the_asynchronous_client_runs_many_streams_at_once(two_ranks: Cluster, client: Client) -> None:
    async def one(api: Any, seed: int) -> str:
        stream = await api.completions.create(
            model=MODEL, prompt="Once", seed=seed, temperature=1.2, max_tokens=40, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{two_ranks.http}/v1", api_key="unused") as api:
            return await asyncio.gather(*(one(api, seed) for seed in range(16)))

    expected = [client.generate("Once", seed=s, temperature=1.2, max_tokens=40).text for s in range(16)]
    assert asyncio.run(all_of_them()) == expected


def test_every_sampling_parameter_means_what_it_means_over_grpc(api: Any, client: Client) -> None:
    shared: dict[str, Any] = {
        "max_tokens": 48, "temperature": 1.1, "top_p": 0.95, "seed": 7, "presence_penalty": 0.3,
        "frequency_penalty": 0.2, "logit_bias": {"70": 2.0},
    }  # fmt: skip
    extra: dict[str, Any] = {"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True}
    expected = client.generate("Once", **{**shared, "logit_bias": {70: 2.0}}, **extra)
    answer = api.completions.create(model=MODEL, prompt="Once", **shared, extra_body=extra)
    assert answer.choices[0].text == expected.text
    assert answer.usage.completion_tokens == 48


def test_n_choices_differ_and_repeat(api: Any) -> None:
    def ask() -> list[str]:
        answer = api.completions.create(
            model=MODEL, prompt="Once", n=3, seed=5, temperature=1.5, max_tokens=24
        )
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_batches_of_texts_and_of_token_ids(api: Any) -> None:
    texts = ["Q: What is 2 + 3?\nA:", "Q: Count from 1 to 5.\nA:"]
    ids = [api.post("/../tokenize", body={"prompt": text}, cast_to=object)["tokens"] for text in texts]
    alone = [
        api.completions.create(model=MODEL, prompt=text, temperature=0).choices[0].text for text in texts
    ]
    for prompt in (texts, ids):
        answer = api.completions.create(model=MODEL, prompt=prompt, temperature=0)
        assert [choice.text for choice in answer.choices] == alone


def test_stops_are_not_shown(api: Any) -> None:
    ask: Any = [{"role": "user", "content": "Count from 1 to 12."}]
    free = api.chat.completions.create(model=MODEL, messages=ask, temperature=0)
    for stop in ("8", ["zzz", "8"]):
        stopped = api.chat.completions.create(model=MODEL, messages=ask, temperature=0, stop=stop)
        assert stopped.choices[0].message.content == free.choices[0].message.content.partition("8")[0]


def test_logprobs_in_both_shapes(api: Any, client: Client) -> None:
    expected = client.generate("Q:", max_tokens=5, temperature=0.0, logprobs=3).logprobs
    assert expected is not None
    values = pytest.approx([entry.logprob for entry in expected], abs=1e-4)
    answer = api.completions.create(model=MODEL, prompt="Q:", max_tokens=5, temperature=0, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs == values
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert [max(top, key=top.get) for top in logprobs.top_logprobs] == logprobs.tokens  # greedy
    chat = api.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == chat.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def test_echo_scores_a_text_as_generating_it_did(api: Any, client: Client) -> None:
    """What lm-eval needs: the logprobs of a given text, bit for bit those with which it was generated."""
    prompts = ["Q: What is 347 + 285?\nA:", "Q: Count from 1 to 30.\nA:"]
    generated = [client.generate(p, max_tokens=150, temperature=0.7, seed=1, logprobs=2) for p in prompts]
    starts = [api.post("/../tokenize", body={"prompt": p}, cast_to=object)["tokens"] for p in prompts]
    texts = [[*start, *one.token_ids] for start, one in zip(starts, generated, strict=True)]
    scored = api.completions.create(model=MODEL, prompt=texts, echo=True, logprobs=2, max_tokens=1)
    for choice, start, one in zip(scored.choices, starts, generated, strict=True):
        assert one.logprobs is not None
        begin, end = len(start), len(start) + len(one.token_ids)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[begin:end] == [entry.logprob for entry in one.logprobs]
        tops = [max(entry.top, key=lambda t: t.logprob).logprob for entry in one.logprobs]
        assert [max(top.values()) for top in choice.logprobs.top_logprobs[begin:end]] == tops


def test_the_model_is_listed(api: Any) -> None:
    (model,) = api.models.list().data
    assert (model.id, model.max_model_len) == (MODEL, 4096)
    assert api.models.retrieve(MODEL).id == MODEL


def test_bad_requests_and_unknown_models_are_what_the_client_calls_them(api: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert "temperature" in bad.value.message
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="4096"):
        api.completions.create(model=MODEL, prompt="a", max_tokens=5000)
    with pytest.raises(openai.NotFoundError) as unknown:
        api.chat.completions.create(model="gpt", messages=ASK)
    assert unknown.value.code == "model_not_found"


def test_a_full_queue_is_a_rate_limit_error(tmp_path: Path) -> None:
    with (
        Cluster(tmp_path, BUNDLED_MODEL, "--max-num-seqs", "1") as cluster,
        contextlib.ExitStack() as streams,
    ):
        cluster.ready()
        api = openai.OpenAI(base_url=f"{cluster.http}/v1", api_key="unused", max_retries=0)
        streams.enter_context(api)

        def long() -> Any:
            """Returns when it is admitted."""
            return api.completions.create(
                model=MODEL, prompt="a", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
            )

        for _ in range(9):  # one runs, eight wait
            streams.enter_context(long())
        with pytest.raises(openai.RateLimitError) as refused:
            long()
        assert float(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_a_vanished_client_frees_its_place(two_ranks: Cluster, stream: bool) -> None:
    body = json.dumps({"prompt": "Q: ", "max_tokens": 3000, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection(address(two_ranks)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        two_ranks.wait_for(lambda s: s["requests"]["running"] == 1, "it runs")
    started_at = time.monotonic()
    two_ranks.wait_for(lambda s: s["requests"]["running"] == 0, "its place is free", 5)
    assert time.monotonic() - started_at < 2


# --- going on

LONG = {"prompt": "Once", "max_tokens": 400, "temperature": 1.0, "seed": 11, "ignore_eos": True}


def test_a_cut_stream_goes_on_where_it_was(two_ranks: Cluster) -> None:
    whole, _ = read_stream(two_ranks, LONG, {})
    key = {"idempotency-key": "cut-1"}
    text, last = read_stream(two_ranks, LONG, key, cut_after=20)
    two_ranks.wait_for(lambda s: s["requests"]["running"] == 0, "its place is free", 5)
    for _ in range(3):
        more, last = read_stream(two_ranks, LONG, {**key, "last-event-id": last}, cut_after=40)
        text += more
    more, last = read_stream(two_ranks, LONG, {**key, "last-event-id": last})
    assert text + more == whole
    assert last == "400"


def test_streams_go_on_after_the_coordinators_death(tmp_path: Path) -> None:
    """One with a seed of its own, one with a seed that the coordinator drew which died."""
    bodies: list[dict[str, Any]] = [{**LONG, "max_tokens": 1200}, {**LONG, "max_tokens": 1200, "seed": None}]
    keys = [{"idempotency-key": f"death-{number}"} for number in range(2)]
    with Cluster(tmp_path, BUNDLED_MODEL) as cluster, ThreadPoolExecutor(2) as pool:
        cluster.ready()
        reading = [pool.submit(read_stream, cluster, *asked) for asked in zip(bodies, keys, strict=True)]
        cluster.wait_for(lambda s: s["requests"]["running"] == 2, "both run")
        coordinator = next(p for p in cluster.children() if "coordinator" in p.cmdline())
        time.sleep(0.3)  # somewhere in the middle
        coordinator.send_signal(signal.SIGKILL)
        psutil.wait_procs([coordinator], timeout=5)
        begun = [one.result(timeout=20) for one in reading]
        wait_until_listening(cluster)
        for body, key, (text, last) in zip(bodies, keys, begun, strict=True):
            assert 0 < int(last) < 1200
            rest, end = read_stream(cluster, body, {**key, "last-event-id": last})
            assert end == "1200"
            # With a seed the undisturbed one is another request; without, only this one has the drawn seed.
            whole, _ = read_stream(cluster, body, {} if body["seed"] else key)
            assert text + rest == whole


def wait_until_listening(cluster: Cluster, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address(cluster), timeout=1):
            return
        assert time.monotonic() < deadline, "no coordinator came back"
        time.sleep(0.02)
