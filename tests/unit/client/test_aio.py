"""The asynchronous client against a real gRPC server whose connections break."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from ryzanstein.wire import StatusError, resource_exhausted, unavailable
from ryzanstein_client import (
    AsyncClient,
    Cancelled,
    DeadlineExceeded,
    Disconnected,
    InternalError,
    InvalidRequest,
    NotFound,
    QueueFull,
    SamplingParams,
    Unauthenticated,
    Unavailable,
)

from .cutting_proxy import CuttingProxy
from .scripted_coordinator import ScriptedCoordinator, expected_tokens, text_of


def fails_with(make: Callable[[], Exception]) -> Callable[[str], Awaitable[None]]:
    """A new exception for every call: one that is kept would keep gRPC's objects alive with the frames that it came
    through, until the interpreter that shuts down can't free them in order any more."""

    async def before_call(_call: str) -> None:
        raise make()

    return before_call


async def test_a_stream_delivers_tokens_text_and_a_finish_reason(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address) as client:
        chunks = [chunk async for chunk in client.stream("hello", max_tokens=20, seed=5)]
    assert [token for chunk in chunks for token in chunk.token_ids] == expected_tokens(5, 20)
    assert "".join(chunk.text for chunk in chunks) == text_of(expected_tokens(5, 20))
    assert [chunk.finish_reason for chunk in chunks] == [None] * 20 + ["length"]
    assert {chunk.logprobs for chunk in chunks} == {None}


async def test_generate_returns_the_whole_answer(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address) as client:
        completion = await client.generate([1, 2, 3], max_tokens=8, seed=5, logprobs=2, request_id="mine")
    assert completion.token_ids == tuple(expected_tokens(5, 8))
    assert completion.text == text_of(expected_tokens(5, 8))
    assert completion.finish_reason == "length"
    assert (completion.request_id, completion.seed, completion.model) == ("mine", 5, "letters")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 8)
    assert completion.timings.first_token_s == 0.5
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == expected_tokens(5, 8)
    assert len(completion.logprobs[0].top) == 2
    assert list(coordinator.records["mine"].request.token_ids.ids) == [1, 2, 3]


async def test_chat_answers_whole_and_in_chunks(coordinator: ScriptedCoordinator) -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with AsyncClient(coordinator.address) as client:
        whole = await client.chat(messages, max_tokens=4, request_id="a")
        parts = [chunk.text async for chunk in await client.chat(messages, stream=True, max_tokens=4)]
    assert whole.text == "".join(parts)
    assert coordinator.records["a"].request.chat.messages[0].content == "hi"


async def test_keywords_win_over_the_fields_of_sampling_params(coordinator: ScriptedCoordinator) -> None:
    sampling = SamplingParams(temperature=0.5, max_tokens=3, stop="zz", logit_bias={7: 1.5})
    async with AsyncClient(coordinator.address) as client:
        await client.generate("x", sampling=sampling, max_tokens=2, request_id="r", priority=4, timeout=9.5)
    request = coordinator.records["r"].request
    assert request.sampling.temperature == 0.5
    assert request.sampling.max_tokens == 2
    assert list(request.sampling.stop) == ["zz"]
    assert dict(request.sampling.logit_bias) == {7: 1.5}
    assert request.priority == 4
    assert request.timeout.ToMilliseconds() <= 9500
    assert not request.sampling.HasField("top_p")


@pytest.mark.parametrize("seed", range(3))
async def test_a_stream_survives_a_coordinator_that_restarts_again_and_again(
    coordinator: ScriptedCoordinator, seed: int
) -> None:
    cuts = sorted(random.Random(seed).sample(range(1, 60), 4))
    coordinator.restart_after(*cuts)
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", max_tokens=60, seed=seed)
        chunks = [chunk async for chunk in stream]
    assert [token for chunk in chunks for token in chunk.token_ids] == expected_tokens(seed, 60)
    assert "".join(chunk.text for chunk in chunks) == text_of(expected_tokens(seed, 60))
    assert chunks[-1].finish_reason == "length"
    assert coordinator.calls.count("Generate") == 1
    assert coordinator.calls.count("Attach") >= 4


async def test_the_tokens_that_the_client_has_win_over_a_log_that_lost_some(
    coordinator: ScriptedCoordinator,
) -> None:
    coordinator.token_limit = 30
    coordinator.restart_after(30, lose_last_tokens=5)
    async with AsyncClient(coordinator.address) as client:
        tokens: list[int] = []
        async for chunk in client.stream("hello", max_tokens=40, seed=1):
            tokens += chunk.token_ids
            if len(tokens) == 30:
                await coordinator.release(40)
    assert tokens == expected_tokens(1, 40)


async def test_held_back_text_comes_once_even_if_the_connection_breaks_at_the_end(
    coordinator: ScriptedCoordinator,
) -> None:
    tokens = expected_tokens(3, 10)
    stop = text_of(tokens[-1:]) + "never"  # the last letter could be its beginning, and is held back
    coordinator.restart_after(10)
    async with AsyncClient(coordinator.address) as client:
        completion = await client.generate("hello", max_tokens=10, seed=3, stop=[stop])
    assert completion.text == text_of(tokens)
    assert "Attach" in coordinator.calls


async def test_a_stop_text_is_not_delivered_and_is_named(coordinator: ScriptedCoordinator) -> None:
    text = text_of(expected_tokens(3, 20))
    async with AsyncClient(coordinator.address) as client:
        completion = await client.generate("hello", max_tokens=20, seed=3, stop=text[8:11])
    assert completion.text == text[: text.index(text[8:11])]
    assert (completion.finish_reason, completion.stop) == ("stop", text[8:11])


async def test_a_coordinator_that_starts_a_little_later_is_waited_for(
    coordinator: ScriptedCoordinator,
) -> None:
    await coordinator.stop()
    async with AsyncClient(coordinator.address) as client:
        answer = asyncio.create_task(client.generate("hello", max_tokens=4, seed=1))
        models = asyncio.create_task(client.models())
        await asyncio.sleep(0)
        await coordinator.start()
        assert (await answer).token_ids == tuple(expected_tokens(1, 4))
        assert [model.name for model in await models] == ["letters"]


async def test_a_coordinator_that_is_not_there_is_an_error_that_says_what_was_tried(
    coordinator: ScriptedCoordinator,
) -> None:
    await coordinator.stop()
    async with AsyncClient(coordinator.address, connect_timeout_s=0.2) as client:
        with pytest.raises(
            Disconnected, match=rf"can't reach the coordinator at {coordinator.address}, tried"
        ):
            await client.generate("hello")
        with pytest.raises(Disconnected, match=r"\(connection refused\)"):
            await client.cluster()


async def test_a_coordinator_that_stays_away_is_given_up(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address, resume_timeout_s=0.3) as client:
        coordinator.token_limit = 5
        stream = client.stream("hello", max_tokens=10)
        for _ in range(5):
            await anext(stream)
        await coordinator.stop()
        with pytest.raises(Disconnected, match="after 5 tokens of request") as caught:
            await anext(stream)
    assert caught.value.tokens_received == 5


async def test_breaking_out_of_the_loop_cancels_the_request_on_the_server(
    coordinator: ScriptedCoordinator,
) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        async for _ in client.stream("hello", request_id="left"):
            break
        await coordinator.wait_until(lambda: "left" in coordinator.cancelled)


async def test_aclose_cancels_the_request_on_the_server_once(coordinator: ScriptedCoordinator) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", request_id="left")
        async with stream:
            await anext(stream)
        await stream.aclose()
        assert coordinator.cancelled == ["left"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_cancelled_task_cancels_its_request_before_the_client_is_closed(
    coordinator: ScriptedCoordinator,
) -> None:
    coordinator.token_limit = 3

    async def read() -> None:
        async with AsyncClient(coordinator.address) as client:
            await client.generate("hello", request_id="left")

    task = asyncio.create_task(read())
    await coordinator.wait_until(lambda: "left" in coordinator.records)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert coordinator.cancelled == ["left"]


async def test_a_forgotten_stream_is_cancelled_when_it_is_collected(coordinator: ScriptedCoordinator) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", request_id="left")
        await anext(stream)
        cycle = [stream]
        cycle.append(cycle)  # type: ignore[arg-type]
        del stream, cycle
        gc.collect()
        await coordinator.wait_until(lambda: "left" in coordinator.cancelled)


async def test_a_stream_that_was_read_to_its_end_cancels_nothing(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", max_tokens=3, seed=9)
        assert stream.seed is None
        assert stream.usage is None
        async for _ in stream:
            pass
        assert stream.seed == 9
        assert stream.usage is not None
        assert stream.usage.completion_tokens == 3
        with pytest.raises(InvalidRequest, match="read from already"):
            await stream.collect()
        del stream
        unread = client.stream("hello")
        del unread
        gc.collect()
        await client.models()
    assert coordinator.cancelled == []


async def test_a_request_cancelled_by_another_call_ends_with_cancelled(
    coordinator: ScriptedCoordinator,
) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", request_id="r")
        for _ in range(3):
            await anext(stream)
        assert await client.cancel("r") is True
        with pytest.raises(Cancelled, match="was cancelled"):
            await anext(stream)
        assert await client.cancel("r") is False
        with pytest.raises(NotFound):
            await client.cancel("nobody")


async def test_a_timeout_ends_a_stream_that_stands_still(coordinator: ScriptedCoordinator) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        with pytest.raises(DeadlineExceeded, match=r"not done within 0\.2 s, 3 tokens came"):
            await client.generate("hello", timeout=0.2)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: StatusError(grpc.StatusCode.UNAUTHENTICATED, "no API key"), Unauthenticated),
        (lambda: resource_exhausted("the queue holds 8 requests, all it may", retry_after_s=2.5), QueueFull),
        (lambda: unavailable("no group serves", retry_after_s=3.0), Unavailable),
        (lambda: RuntimeError("secret"), InternalError),
    ],
)
async def test_every_status_becomes_its_own_exception(
    coordinator: ScriptedCoordinator, make: Callable[[], Exception], expected: type[Exception]
) -> None:
    coordinator.before_call = fails_with(make)
    raised = make()
    async with AsyncClient(coordinator.address, connect_timeout_s=0.0) as client:
        with pytest.raises(expected) as of_stream:
            await client.generate("hello")
        with pytest.raises(expected):
            await client.models()
    assert type(of_stream.value) is expected
    assert "secret" not in str(of_stream.value)
    if isinstance(raised, StatusError):
        assert of_stream.value.message == raised.message  # type: ignore[attr-defined]
        assert getattr(of_stream.value, "retry_after_s", None) == raised.retry_after_s


async def test_mistakes_in_the_request_are_named_before_or_by_the_server(
    coordinator: ScriptedCoordinator,
) -> None:
    async with AsyncClient(coordinator.address) as client:
        with pytest.raises(InvalidRequest, match="temperature is 3; it must be in"):
            await client.generate("hello", temperature=3.0)
        with pytest.raises(InvalidRequest, match="max_tokens is -1"):
            await client.generate("hello", max_tokens=-1)
        with pytest.raises(InvalidRequest, match="timeout is 0; it must be a positive"):
            await client.generate("hello", timeout=0)
        with pytest.raises(InvalidRequest, match="prompt is"):
            await client.generate([1.5])  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match="prompt is 5; it must be a list"):
            await client.generate(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="stop is 5; it must be a list"):
            await client.generate("hello", stop=5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"logit_bias is \[1\]; it must be a mapping"):
            await client.generate("hello", logit_bias=[1])  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"messages\[0\] is"):
            await client.chat(["hello"])  # type: ignore[list-item]
        with pytest.raises(NotFound, match="'gpt' is not served"):
            await client.generate("hello", model="gpt")
        with pytest.raises(TypeError, match="'max_token'"):
            client.stream("hello", max_token=3)  # type: ignore[call-arg]
        with pytest.raises(InvalidRequest, match="shorter prompt"):
            await client.generate("x" * 9_000_000)


async def test_tokenize_and_detokenize_are_inverse(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address) as client:
        assert await client.tokenize("hé") == [104, 233]
        assert await client.detokenize([104, 233]) == "hé"
        assert await client.tokenize([{"role": "user", "content": "x"}]) == [ord(c) for c in "user: x\n"]


async def test_the_cluster_is_plain_values_and_is_watched_over_restarts(
    coordinator: ScriptedCoordinator,
) -> None:
    async with AsyncClient(coordinator.address) as client:
        assert (await client.cluster())["state"] == "serving"
        states = []
        async for snapshot in client.watch():
            states.append((snapshot["revision"], snapshot["state"]))
            if len(states) == 1:
                coordinator.snapshot.revision = 2
                coordinator.snapshot.state = "recovering"
                await coordinator.restart()
            else:
                break
    assert states == [(1, "serving"), (2, "recovering")]


async def test_the_api_key_goes_with_every_call(coordinator: ScriptedCoordinator) -> None:
    async with AsyncClient(coordinator.address, api_key="k1") as client:
        await client.models()
        await client.generate("hello", max_tokens=1)
    assert {metadata.get("authorization") for metadata in coordinator.metadata} == {"Bearer k1"}


async def test_a_closed_client_and_a_wrong_address_say_so() -> None:
    client = AsyncClient("127.0.0.1:1")
    await client.aclose()
    with pytest.raises(InvalidRequest, match="closed"):
        await client.models()
    for address in ("localhost", "localhost:", ":50051", "localhost:0", "localhost:http"):
        with pytest.raises(InvalidRequest, match="HOST:PORT"):
            AsyncClient(address)


def test_one_client_belongs_to_one_event_loop() -> None:
    client = AsyncClient("127.0.0.1:1", connect_timeout_s=0)  # may be made outside of any loop

    async def use() -> None:
        with pytest.raises(Disconnected):
            await client.models()

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(use())
        with pytest.raises(InvalidRequest, match="another event loop"):
            second.run_until_complete(use())
        first.run_until_complete(client.aclose())
    finally:
        first.close()
        second.close()


async def test_many_streams_share_one_client(coordinator: ScriptedCoordinator) -> None:
    coordinator.restart_after(10, 20)
    async with AsyncClient(coordinator.address) as client:
        answers = await asyncio.gather(
            *(client.generate("hello", max_tokens=40, seed=seed) for seed in range(16))
        )
    assert [answer.token_ids for answer in answers] == [tuple(expected_tokens(s, 40)) for s in range(16)]


@pytest.mark.parametrize("seed", range(3))
async def test_streams_survive_a_network_that_resets_connections(
    coordinator: ScriptedCoordinator, seed: int
) -> None:
    proxy = CuttingProxy(coordinator.port)
    await proxy.start()
    draw = random.Random(seed)

    async def on_sent(_count: int) -> None:
        if draw.random() < 0.05:
            proxy.cut()

    coordinator.on_sent = on_sent
    async with AsyncClient(proxy.address) as client:
        answers = await asyncio.gather(*(client.generate("hello", max_tokens=50, seed=s) for s in range(4)))
    await proxy.close()
    assert [answer.token_ids for answer in answers] == [tuple(expected_tokens(s, 50)) for s in range(4)]
    assert [answer.text for answer in answers] == [text_of(expected_tokens(s, 50)) for s in range(4)]
    assert coordinator.calls.count("Attach") > 0
    assert coordinator.cancelled == []


async def test_closing_the_client_cancels_the_streams_that_are_still_open(
    coordinator: ScriptedCoordinator,
) -> None:
    coordinator.token_limit = 3
    async with AsyncClient(coordinator.address) as client:
        stream = client.stream("hello", request_id="open")
        await anext(stream)
        unread = client.stream("hello", request_id="unread")
    assert coordinator.cancelled == ["open"]
    for each in (stream, unread):
        with pytest.raises(StopAsyncIteration):
            await anext(each)


async def test_a_timeout_beyond_what_the_wire_carries_is_a_very_long_one(
    coordinator: ScriptedCoordinator,
) -> None:
    async with AsyncClient(coordinator.address) as client:
        assert (await client.generate("hello", max_tokens=2, timeout=1e300)).finish_reason == "length"


async def test_an_answer_that_is_no_message_is_an_error_of_the_library() -> None:
    async def garbage(_request: bytes, _context: object) -> bytes:
        return b"\xff\xff\xff"

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"ListModels": grpc.unary_unary_rpc_method_handler(garbage)}
    handler = grpc.method_handlers_generic_handler("ryzanstein.v1.InferenceService", handlers)
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with AsyncClient(address) as client:
        with pytest.raises(InternalError, match="can't be read"):
            await client.models()
    await server.stop(None)
