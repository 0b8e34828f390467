"""The same over gRPC: events in order, statuses with their reasons, clients that vanish, and nonsense."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ryzanstein.v1 import inference_pb2 as pb
from ryzanstein.v1.inference_pb2_grpc import InferenceServiceStub
from ryzanstein.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, SamplingParams
from ryzanstein.wire import RETRY_AFTER_KEY
from ryzanstein_coordinator.admission import AdmissionLimits
from ryzanstein_coordinator.chat_template import ChatTemplate
from ryzanstein_coordinator.prompts import ModelFacts
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .cluster import Served, eventually, request_path, served
from .leader import Leader, script
from .trained_tokenizers import byte_level

TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}"
TOKENIZER = ModelTokenizer(byte_level(), ChatTemplate(TEMPLATE, {}))


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    leader = await Leader().start()
    yield leader
    await leader.close()


@pytest.fixture
async def server(leader: Leader) -> AsyncIterator[Served]:
    path = request_path(tokenizer=TOKENIZER, clock=time.monotonic)
    async with served(path) as running:
        path.serve(leader)
        yield running
    assert running.internal == []


def asking(text: str = "The sky", **fields: Any) -> pb.GenerateRequest:
    sampling = SamplingParams(seed=7, max_tokens=10)
    sampling.MergeFrom(fields.pop("sampling", SamplingParams()))
    return pb.GenerateRequest(text=text, sampling=sampling, **fields)


async def events_of(call: Any) -> list[pb.StreamEvent]:
    """All that are still to come."""
    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    return events


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """How it ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def joined(events: list[pb.StreamEvent]) -> tuple[list[int], str]:
    """Tokens and text of all chunks, with every index checked."""
    tokens: list[int] = []
    text = ""
    for event in events:
        if event.WhichOneof("event") == "tokens":
            assert event.tokens.first_index == len(tokens)
            tokens.extend(event.tokens.token_ids)
            text += event.tokens.text
    return tokens, text


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events_of(call)
    return caught.value


async def test_accepted_comes_first_then_tokens_then_the_end(server: Served, leader: Leader) -> None:
    answer = TOKENIZER.encode(" is blue.", add_special_tokens=False)
    leader.next_token = script(answer)

    events = await events_of(server.stub.Generate(asking(sampling=SamplingParams(max_tokens=len(answer)))))

    accepted, finished = events[0].accepted, events[-1].finished
    assert accepted.request_id.startswith("req-")
    assert (accepted.seed, accepted.model, accepted.epoch) == (7, "tiny", 1)
    assert accepted.prompt_tokens == len(TOKENIZER.encode("The sky"))
    assert joined(events) == (answer, " is blue.")
    assert finished.reason == FINISH_REASON_LENGTH
    assert finished.usage == pb.Usage(
        prompt_tokens=accepted.prompt_tokens, completion_tokens=len(answer), cached_tokens=1
    )
    assert 0 < finished.timings.queue_s <= finished.timings.first_token_s <= finished.timings.total_s < 60


async def test_a_seed_is_drawn_and_told_and_repeats_the_answer(server: Served) -> None:
    request = pb.GenerateRequest(text="The sky", sampling=SamplingParams(max_tokens=20))
    first = await events_of(server.stub.Generate(request))
    other = await events_of(server.stub.Generate(request))
    request.sampling.seed = first[0].accepted.seed
    again = await events_of(server.stub.Generate(request))

    assert joined(again) == joined(first) != joined(other)


async def test_a_stop_text_ends_the_stream_and_is_named(server: Served, leader: Leader) -> None:
    leader.next_token = script(TOKENIZER.encode("one END two three", add_special_tokens=False))

    events = await events_of(server.stub.Generate(asking(sampling=SamplingParams(stop=["END"]))))

    assert joined(events)[1] == "one "
    assert events[-1].finished.reason == FINISH_REASON_STOP
    assert events[-1].finished.stop == "END"


async def test_there_is_one_entry_of_logprobs_per_token(server: Served) -> None:
    events = await events_of(server.stub.Generate(asking(sampling=SamplingParams(logprobs=2))))

    entries = [entry for event in events for entry in event.tokens.logprobs]
    assert [entry.token_id for entry in entries] == joined(events)[0]
    assert {len(entry.top) for entry in entries} == {2}


@pytest.mark.parametrize(
    "prompt",
    [
        {"token_ids": pb.TokenIds(ids=[11, 12])},
        {"chat": pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")])},
    ],
    ids=["token ids", "chat"],
)
async def test_other_prompts(server: Served, prompt: dict[str, Any]) -> None:
    sampling = SamplingParams(max_tokens=5)
    events = await events_of(server.stub.Generate(pb.GenerateRequest(sampling=sampling, **prompt)))

    assert len(joined(events)[0]) == 5


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "no prompt; set text, token_ids or chat"),
        (asking(""), "INVALID_ARGUMENT", "empty"),
        (asking(model="gpt"), "NOT_FOUND", "'tiny' is served"),
        (asking(request_id="ü"), "INVALID_ARGUMENT", "printable ASCII"),
        (asking(sampling=SamplingParams(top_p=2)), "INVALID_ARGUMENT", "top_p is 2.0"),
        (asking(sampling=SamplingParams(max_tokens=255)), "INVALID_ARGUMENT", "at most 256"),
        (asking(timeout=Duration(seconds=-1)), "INVALID_ARGUMENT", "timeout is -1.0"),
        (asking("word " * 400), "INVALID_ARGUMENT", "at most 256 tokens"),
        (asking("x" * 7_000_000), "INVALID_ARGUMENT", "7000000 bytes"),
        (asking("x" * 10_000_000), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong_quickly(
    server: Served, request_: pb.GenerateRequest, code: str, message: str
) -> None:
    begun = time.monotonic()

    failure = await failure_of(server.stub.Generate(request_))

    assert failure.code().name == code
    assert message in (failure.details() or "")
    assert time.monotonic() - begun < 1.0


async def test_a_refusal_says_when_to_come_again() -> None:
    path = request_path(tokenizer=TOKENIZER, admission=AdmissionLimits(max_waiting=0), clock=time.monotonic)
    leader = await Leader(max_num_seqs=1, budget=0).start()
    async with served(path) as server:
        path.serve(leader)
        waiting = server.stub.Generate(asking())
        await waiting.read()

        failure = await failure_of(server.stub.Generate(asking()))

        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(failure.trailing_metadata() or ()) == [(RETRY_AFTER_KEY, "1000")]
        waiting.cancel()
    await leader.close()


async def test_a_client_that_goes_away_frees_its_place_and_may_come_back(
    server: Served, leader: Leader
) -> None:
    leader.allow(4)
    call = server.stub.Generate(asking(request_id="a", sampling=SamplingParams(max_tokens=30)))
    received: list[int] = []
    while len(received) < 4:
        response: Any = await call.read()
        received += list(response.event.tokens.token_ids)
    call.cancel()
    await eventually(lambda: leader.running == 0)
    leader.allow(None)

    attached = server.stub.Attach(pb.AttachRequest(request_id="a", received_token_ids=received))
    events = await events_of(attached)

    assert events[0].accepted.seed == 7
    assert events[1].tokens.first_index == 4
    rest = [token_id for event in events for token_id in event.tokens.token_ids]
    assert received + rest == leader.expected(TOKENIZER.encode("The sky"), seed=7, max_tokens=30)


async def test_a_client_that_vanishes_while_it_does_not_read_frees_its_place(leader: Leader) -> None:
    """Its window is full: the server waits in a write, and nothing else does, when the client goes away."""
    long = ModelFacts(name="long", max_model_len=8000, vocab_size=700)
    path = request_path(tokenizer=TOKENIZER, model=long, clock=time.monotonic)
    small_window = [("grpc.http2.bdp_probe", 0)]
    async with served(path) as server, server.channel(small_window) as channel:
        leader.allow(4000)
        path.serve(leader)
        sampling = SamplingParams(max_tokens=5000, logprobs=20)
        stuck = InferenceServiceStub(channel).Generate(asking(request_id="stuck", sampling=sampling))
        await stuck.read()
        await eventually(lambda: leader.budget == 0)
        (record,) = path.front_door._store.living()
        (subscription,) = record.listeners
        await eventually(lambda: len(record.output) == 4000)
        assert subscription.index < 4000
        quick = asyncio.create_task(events_of(server.stub.Generate(asking())))
        await eventually(lambda: leader.running == 2)
        leader.allow(20)
        assert len(joined(await quick)[0]) == 10

        stuck.cancel()

        await eventually(lambda: leader.running == 0)
        assert record.listeners == set()
        assert path.router.counts() == (0, 0)


async def test_cancel_ends_the_stream_with_a_status(server: Served, leader: Leader) -> None:
    leader.allow(2)
    call = server.stub.Generate(asking(request_id="a"))
    await call.read()

    assert await server.stub.Cancel(pb.CancelRequest(request_id="a")) == pb.CancelResponse(
        cancelled=True, epoch=1
    )
    assert not (await server.stub.Cancel(pb.CancelRequest(request_id="a"))).cancelled
    failure = await failure_of(call)
    assert failure.code() is grpc.StatusCode.CANCELLED
    assert "'a' was cancelled" in (failure.details() or "")


@pytest.mark.parametrize("by", ["timeout", "deadline of the call"])
async def test_time_that_is_over_is_a_status(server: Served, leader: Leader, by: str) -> None:
    leader.allow(2)
    if by == "timeout":
        call = server.stub.Generate(asking(timeout=Duration(nanos=100_000_000)))
    else:
        call = server.stub.Generate(asking(), timeout=0.1)

    failure = await failure_of(call)

    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: leader.running == 0)
    await eventually(lambda: server.path.seen.ended == ["deadline"])


async def test_owners_do_not_see_each_others_requests(leader: Leader) -> None:
    path = request_path(tokenizer=TOKENIZER, clock=time.monotonic)

    def owner_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
        return str(dict(context.invocation_metadata() or ()).get("key", ""))

    async with served(path, owner_of=owner_of) as server:
        path.serve(leader)
        for key in ("one", "two"):
            call = server.stub.Generate(asking(request_id="same"), metadata=(("key", key),))
            assert len(joined(await events_of(call))[0]) == 10

        cancel = server.stub.Cancel(pb.CancelRequest(request_id="same"), metadata=(("key", "three"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cancel
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_models_tokens_and_text(server: Served) -> None:
    models = (await server.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.name, model.max_model_len) for model in models] == [("tiny", 256)]

    tokens = await server.stub.Tokenize(pb.TokenizeRequest(text="The sky"))
    assert (list(tokens.token_ids), tokens.max_model_len) == (TOKENIZER.encode("The sky"), 256)
    plain = await server.stub.Tokenize(pb.TokenizeRequest(text="The sky", add_special_tokens=False))
    assert list(plain.token_ids) == TOKENIZER.encode("The sky", add_special_tokens=False)
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")])
    said = await server.stub.Tokenize(pb.TokenizeRequest(chat=chat))

    text = await server.stub.Detokenize(pb.DetokenizeRequest(token_ids=said.token_ids))
    assert text.text == "<|user|>hi</s>"


async def test_hundreds_of_streams_over_two_leaders_and_a_death(server: Served, leader: Leader) -> None:
    leader.allow(1500)
    calls = [
        asyncio.create_task(
            events_of(server.stub.Generate(asking(f"prompt {i}", sampling=SamplingParams(max_tokens=20))))
        )
        for i in range(150)
    ]
    await eventually(lambda: leader.budget == 0)
    await leader.die()
    server.path.router.group_lost("g0", 1, "test")
    second = await Leader(epoch=2).start()
    server.path.serve(second)

    for i, call in enumerate(calls):
        prompt = TOKENIZER.encode(f"prompt {i}")
        assert joined(await call)[0] == second.expected(prompt, seed=7, max_tokens=20)
    await second.close()


# --- nonsense


def nonsense(kind: int, text: str, ids: list[int], **fields: Any) -> pb.GenerateRequest:
    """With one of the prompts, or none."""
    request = pb.GenerateRequest(**fields)
    if kind == 0:
        request.text = text
    elif kind == 1:
        request.token_ids.ids.extend(ids)
    elif kind == 2:
        request.chat.messages.add(role=text, content=text)
    return request


requests = st.builds(
    nonsense,
    st.integers(0, 3),
    st.text(max_size=40),
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 720), max_size=8),
    request_id=st.text(max_size=140),
    model=st.sampled_from(["", "tiny", "other"]),
    sampling=st.builds(
        SamplingParams,
        max_tokens=st.integers(0, 2**32 - 1) | st.integers(0, 20),
        temperature=st.floats() | st.just(1.0),
        top_p=st.floats() | st.just(1.0),
        stop=st.lists(st.text(max_size=3), max_size=2),
        stop_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=2),
        logit_bias=st.dictionaries(st.integers(0, 720), st.floats(width=32), max_size=2),
        logprobs=st.integers(0, 30),
    ),
    priority=st.integers(-(2**31), 2**31 - 1),
    timeout=st.none()
    | st.builds(Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)),
)


async def test_nonsense_is_never_an_internal_error(server: Served) -> None:
    """Valid or refused in words; what is cut off or garbled is gRPC's to refuse."""

    async def send(request: pb.GenerateRequest) -> set[grpc.StatusCode]:
        ids, request_id = request.token_ids.ids, request.request_id
        attach = pb.AttachRequest(request_id=request_id, received_token_ids=ids)
        return {
            await code_of(events_of(server.stub.Generate(request, timeout=5))),
            await code_of(events_of(server.stub.Attach(attach, timeout=5))),
            await code_of(server.stub.Cancel(pb.CancelRequest(request_id=request_id))),
            await code_of(server.stub.Tokenize(pb.TokenizeRequest(model=request.model, text=request.text))),
            await code_of(server.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids))),
        }

    generated: list[pb.GenerateRequest] = []

    @given(requests)
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def collect(request: pb.GenerateRequest) -> None:
        generated.append(request)

    collect()
    codes: set[grpc.StatusCode] = set()
    for request in generated:
        codes |= await send(request)
    assert server.internal == []
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= codes
    assert not {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN} & codes


async def test_garbled_bytes_never_reach_a_defect_of_ours(server: Served) -> None:
    chance = random.Random(1)
    sampling = SamplingParams(stop=["x"], logit_bias={3: 1.0})
    valid = asking(request_id="a", sampling=sampling).SerializeToString()
    codes = set()
    async with server.channel() as channel:
        raw: Any = channel.unary_stream(
            "/ryzanstein.v1.InferenceService/Generate", response_deserializer=pb.GenerateResponse.FromString
        )
        for _ in range(300):
            garbled = bytearray(valid)
            for _ in range(chance.randrange(1, 6)):
                garbled[chance.randrange(len(garbled))] = chance.randrange(256)
            cut = bytes(garbled[: chance.randrange(len(garbled) + 1)])
            codes.add(await code_of(events_of(raw(cut, timeout=5))))

    assert server.internal == []
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= codes
    assert not {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN} & codes
