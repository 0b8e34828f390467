"""Streams over connections that break anywhere: the pure state machine against a model of the coordinator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ryzanstein.v1 import inference_pb2 as pb
from ryzanstein.v1 import sampling_pb2
from ryzanstein_client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Disconnected,
    InternalError,
    InvalidRequest,
    NotFound,
    QueueFull,
    Unavailable,
)
from ryzanstein_client.resume import ResumableStream
from ryzanstein_client.retry import ResumePolicy
from ryzanstein_client.status import CallFailed
from ryzanstein_client.types import Chunk

BROKEN = (
    CallFailed(grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    CallFailed(grpc.StatusCode.UNAVAILABLE, ""),
    CallFailed(grpc.StatusCode.CANCELLED, "CANCELLED"),
    CallFailed(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    CallFailed(grpc.StatusCode.UNKNOWN, "Stream removed"),
    CallFailed.unusable("it ended before its last event"),
)
LOST = BROKEN[0]


def stream(policy: ResumePolicy | None = None, *, timeout_s: float | None = None) -> ResumableStream:
    request = pb.GenerateRequest(request_id="r1", text="x")
    if timeout_s is not None:
        request.timeout.FromNanoseconds(round(timeout_s * 1e9))
    return ResumableStream(
        request, address="host:1", policy=policy or ResumePolicy(), now_s=0.0, jitter=random.Random(1)
    )


def accepted(seed: int = 7) -> pb.StreamEvent:
    return pb.StreamEvent(accepted=pb.RequestAccepted(request_id="r1", seed=seed))


def tokens(first: int, *ids: int, text: str = "") -> pb.StreamEvent:
    return pb.StreamEvent(tokens=pb.TokenChunk(first_index=first, token_ids=ids, text=text))


def finished(reason: int = sampling_pb2.FINISH_REASON_STOP) -> pb.StreamEvent:
    return pb.StreamEvent(finished=pb.RequestFinished(reason=reason))  # type: ignore[arg-type]


@dataclass
class Coordinator:
    """What a coordinator says to a request of these tokens; each call draws its own division into chunks."""

    token_ids: list[int]
    tail: str  # text that was held back until the end
    draw: random.Random
    known: bool = False
    log: list[str] = field(default_factory=list)

    def answer(self, request: pb.GenerateRequest | pb.AttachRequest) -> Iterator[pb.StreamEvent]:
        if isinstance(request, pb.GenerateRequest):
            self.log.append("generate")
            if self.known:
                raise CallFailed(grpc.StatusCode.ALREADY_EXISTS, "alive")
            self.known = True
            position = 0
        else:
            self.log.append("attach")
            if not self.known:
                raise CallFailed(grpc.StatusCode.NOT_FOUND, "unknown")
            position = len(request.received_token_ids)
            assert list(request.received_token_ids) == self.token_ids[:position]
            position -= self.draw.randint(0, min(position, 3))  # a careless one repeats some
        yield accepted()
        while position < len(self.token_ids):
            ids = self.token_ids[position : position + self.draw.randint(1, 3)]
            yield tokens(position, *ids, text="".join(map(chr, ids)))
            position += len(ids)
        for part in (self.tail[:1], self.tail[1:]):
            if part:
                yield tokens(position, text=part)
        yield finished()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(
    token_ids=st.lists(st.integers(97, 122), max_size=12),
    tail=st.sampled_from(["", "!", "?!.", "aab"]),
    cuts=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(BROKEN), st.sampled_from(["lost", "cut", "forgotten"])),
        max_size=8,
    ),
    seed=st.integers(0, 1000),
)
def test_each_token_is_delivered_once_and_in_order_whatever_breaks(
    token_ids: list[int], tail: str, cuts: list[tuple[int, CallFailed, str]], seed: int
) -> None:
    coordinator = Coordinator(token_ids, tail, random.Random(seed))
    state = stream()
    delivered: list[Chunk] = []
    now_s = 0.0
    for _ in range(200):
        limit, failure, kind = cuts.pop(0) if cuts else (None, LOST, "cut")
        request = state.next_request(now_s)
        try:
            if kind == "lost" and limit is not None:
                raise failure  # the call never arrived
            for index, event in enumerate(coordinator.answer(request)):
                if index == limit:
                    if kind == "forgotten" and not state.tokens_received:
                        coordinator.known = False  # a coordinator without a log dies before the first token
                    raise failure
                chunk = state.on_event(event, now_s)
                if chunk is not None:
                    delivered.append(chunk)
        except CallFailed as happened:
            delay_s = state.on_failure(happened, now_s)
            assert 0 <= delay_s <= 1.0
            now_s += delay_s
        if state.finished is not None:
            break
    assert [token for chunk in delivered for token in chunk.token_ids] == token_ids
    assert "".join(chunk.text for chunk in delivered) == "".join(map(chr, token_ids)) + tail
    assert [chunk.finish_reason for chunk in delivered if chunk.finish_reason] == ["stop"]
    assert delivered[-1].finish_reason == "stop"


def test_a_break_after_some_tokens_attaches_behind_them() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 5, 6), 0.0)
    state.on_failure(LOST, 0.0)
    request = state.next_request(0.1)
    assert isinstance(request, pb.AttachRequest)
    assert list(request.received_token_ids) == [5, 6]


def test_a_break_before_the_answer_sends_the_same_request_again_and_attaches_if_it_had_arrived() -> None:
    state = stream()
    first = state.next_request(0.0)
    state.on_failure(LOST, 0.0)
    again = state.next_request(0.1)
    assert again == first
    state.on_failure(CallFailed(grpc.StatusCode.ALREADY_EXISTS, "alive"), 0.2)
    assert isinstance(state.next_request(0.3), pb.AttachRequest)


def test_the_first_call_with_an_id_in_use_is_an_error() -> None:
    state = stream()
    state.next_request(0.0)
    with pytest.raises(AlreadyExists):
        state.on_failure(CallFailed(grpc.StatusCode.ALREADY_EXISTS, "alive"), 0.0)


def test_a_request_forgotten_before_its_first_token_is_made_anew_with_the_reported_seed() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(seed=42), 0.0)
    state.on_failure(LOST, 0.0)
    state.next_request(0.1)
    state.on_failure(CallFailed(grpc.StatusCode.NOT_FOUND, "unknown"), 0.1)
    request = state.next_request(0.2)
    assert isinstance(request, pb.GenerateRequest)
    assert request.sampling.seed == 42


def test_a_request_forgotten_after_tokens_were_delivered_is_an_error_that_says_how_many() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 1, 2, 3), 0.0)
    state.on_failure(LOST, 0.0)
    state.next_request(0.1)
    with pytest.raises(NotFound, match="no longer knows request r1, of which 3 tokens were received"):
        state.on_failure(CallFailed(grpc.StatusCode.NOT_FOUND, "unknown"), 0.1)


def test_a_gap_is_not_delivered_but_attached_again() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 1), 0.0)
    with pytest.raises(CallFailed, match="tokens 1 to 2 are missing"):
        state.on_event(tokens(3, 4), 0.0)


def test_tokens_that_contradict_those_delivered_end_the_stream() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 1, 2), 0.0)
    with pytest.raises(InternalError, match="other tokens than before at index 1"):
        state.on_event(tokens(1, 9, 10), 0.0)


def test_an_answer_without_acceptance_ends_the_stream() -> None:
    state = stream()
    state.next_request(0.0)
    with pytest.raises(InternalError, match="without accepting"):
        state.on_event(tokens(0, 1), 0.0)


def give_up(state: ResumableStream, start_s: float, *, accepting: bool = False) -> tuple[Exception, float]:
    now_s = start_s
    while True:
        try:
            now_s += state.on_failure(LOST, now_s)
            state.next_request(now_s)
            if accepting:
                state.on_event(accepted(), now_s)
        except Exception as error:  # noqa: BLE001 - it is what the test wants to see
            return error, now_s


def test_a_coordinator_that_never_answered_is_given_up_after_the_connect_timeout() -> None:
    state = stream(ResumePolicy(connect_timeout_s=3, resume_timeout_s=100))
    state.next_request(0.0)
    error, now_s = give_up(state, 0.0)
    assert isinstance(error, Disconnected)
    assert now_s == pytest.approx(3.0)
    assert "can't reach the coordinator at host:1" in str(error)
    assert f"tried {error.attempts} times in 3.0 s (UNAVAILABLE: Socket closed)" in str(error)
    assert error.attempts > 3


def test_a_lost_stream_is_given_up_after_the_resume_timeout_and_the_error_says_how_far_it_came() -> None:
    state = stream(ResumePolicy(connect_timeout_s=3, resume_timeout_s=20))
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 1, 2), 50.0)
    error, now_s = give_up(state, 50.0)
    assert isinstance(error, Disconnected)
    assert now_s == pytest.approx(70.0)
    assert error.tokens_received == 2
    assert "after 2 tokens of request r1" in str(error)


def test_a_timeout_of_zero_gives_up_at_once() -> None:
    state = stream(ResumePolicy(connect_timeout_s=0))
    state.next_request(0.0)
    with pytest.raises(Disconnected, match="tried once"):
        state.on_failure(LOST, 0.0)


def test_only_time_without_a_connection_counts_against_the_resume_timeout() -> None:
    state = stream(ResumePolicy(resume_timeout_s=10))
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_failure(LOST, 0.0)
    state.next_request(4.0)
    state.on_event(accepted(), 4.0)  # attached, then a long recovery without a token
    assert state.on_failure(LOST, 100.0) > 0  # 4 of 10 seconds are used, not 100
    with pytest.raises(Disconnected):
        state.on_failure(LOST, 106.0)


def test_a_coordinator_that_only_ever_accepts_is_given_up_in_the_end() -> None:
    state = stream(ResumePolicy(resume_timeout_s=10))
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    error, now_s = give_up(state, 0.0, accepting=True)
    assert isinstance(error, Disconnected)
    assert now_s == pytest.approx(10.0)


def test_waits_grow_to_half_a_second_and_start_small_again_after_progress() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    delays = [state.on_failure(LOST, float(second)) for second in range(10)]
    assert delays[0] <= 0.05
    assert 0.25 <= delays[-1] <= 0.5
    state.next_request(10.0)
    state.on_event(tokens(0, 1), 10.0)
    assert state.on_failure(LOST, 11.0) <= 0.05


def test_a_server_that_says_when_to_come_back_is_heeded() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    busy = CallFailed(grpc.StatusCode.UNAVAILABLE, "no group", retry_after_s=2.5)
    assert state.on_failure(busy, 0.0) == 2.5


def test_a_stream_that_was_accepted_is_not_lost_to_a_full_queue() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    state.on_event(tokens(0, 5, 6), 0.0)
    state.on_failure(LOST, 1.0)
    full = CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry_after_s=0.75)
    assert state.on_failure(full, 2.0) == 0.75
    again = state.next_request(2.75)
    assert isinstance(again, pb.AttachRequest)
    assert list(again.received_token_ids) == [5, 6]
    too_large = CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max")
    with pytest.raises(InvalidRequest):
        state.on_failure(too_large, 3.0)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full", retry_after_s=0.5), QueueFull),
        (CallFailed(grpc.StatusCode.INVALID_ARGUMENT, "temperature is 3"), InvalidRequest),
        (CallFailed(grpc.StatusCode.NOT_FOUND, "model 'x'"), NotFound),
        (CallFailed(grpc.StatusCode.CANCELLED, "request 'r1' was cancelled"), Cancelled),
        (CallFailed(grpc.StatusCode.INTERNAL, "internal error (KeyError)"), InternalError),
    ],
)
def test_what_the_server_refuses_is_not_tried_again(failure: CallFailed, error: type[Exception]) -> None:
    state = stream()
    state.next_request(0.0)
    with pytest.raises(error):
        state.on_failure(failure, 0.0)


def test_a_request_that_a_stopping_server_did_not_take_is_sent_again_as_it_was() -> None:
    state = stream(timeout_s=60.0)
    stopping = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server is stopping", retry_after_s=1.0)
    first = state.next_request(0.0)
    assert state.on_failure(stopping, 0.0) == 1.0
    assert state.next_request(1.0) is first
    assert 0 < state.on_failure(LOST, 1.0) <= 0.5, "it has stopped"
    again = state.next_request(1.2)
    assert isinstance(again, pb.GenerateRequest)
    state.on_event(accepted(), 1.3)
    assert state.attempts == 0


def test_a_server_that_goes_on_refusing_is_quoted_when_the_patience_ends() -> None:
    state = stream()
    stopping = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server is stopping", retry_after_s=2.0)
    now_s = 0.0
    while now_s < ResumePolicy().connect_timeout_s:
        state.next_request(now_s)
        now_s += state.on_failure(stopping, now_s)
    with pytest.raises(Unavailable, match="the server is stopping; try again in 2 s") as given_up:
        state.on_failure(stopping, now_s)
    assert type(given_up.value) is Unavailable


def test_waiting_for_a_stopping_server_ends_with_the_deadline() -> None:
    state = stream(timeout_s=1.5)
    stopping = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server is stopping", retry_after_s=1.0)
    state.next_request(0.0)
    assert state.on_failure(stopping, 0.0) == 1.0
    state.next_request(1.0)
    assert state.on_failure(stopping, 1.0) == 0.5
    with pytest.raises(DeadlineExceeded):
        state.on_failure(stopping, 1.5)


def test_the_deadline_ends_the_attempts_and_bounds_the_wait() -> None:
    state = stream(timeout_s=5.0)
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    assert state.on_failure(LOST, 4.99) <= 0.01
    with pytest.raises(DeadlineExceeded, match="r1 was not done within 5 s, 0 tokens came"):
        state.on_failure(LOST, 5.0)


def test_a_deadline_that_can_not_be_met_is_refused_in_the_servers_words() -> None:
    state = stream(timeout_s=5.0)
    state.next_request(0.0)
    hopeless = CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "501 tokens take about 10 s")
    with pytest.raises(DeadlineExceeded, match="501 tokens take about 10 s; allow more time"):
        state.on_failure(hopeless, 0.1)


@pytest.mark.parametrize("ids", [(), (5, 6)])
def test_a_deadline_that_passes_while_the_coordinator_is_down_is_one(ids: tuple[int, ...]) -> None:
    state = stream(timeout_s=5.0)
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    if ids:
        state.on_event(tokens(0, *ids), 1.0)
    state.on_failure(LOST, 4.9)
    assert isinstance(state.next_request(4.95), pb.AttachRequest)
    with pytest.raises(DeadlineExceeded, match=f"r1 was not done within 5 s, {len(ids)} tokens came"):
        state.on_failure(CallFailed(grpc.StatusCode.NOT_FOUND, "unknown"), 5.01)


def test_a_request_made_anew_carries_only_the_time_that_is_left() -> None:
    state = stream(timeout_s=5.0)
    state.next_request(0.0)
    state.on_failure(LOST, 1.0)
    request = state.next_request(2.0)
    assert isinstance(request, pb.GenerateRequest)
    assert request.timeout.ToMilliseconds() == 3000


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (sampling_pb2.FINISH_REASON_CANCELLED, Cancelled),
        (sampling_pb2.FINISH_REASON_DEADLINE, DeadlineExceeded),
        (sampling_pb2.FINISH_REASON_ERROR, InternalError),
        (sampling_pb2.FINISH_REASON_UNSPECIFIED, InternalError),
    ],
)
def test_an_end_without_an_answer_is_an_error(reason: int, error: type[Exception]) -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    with pytest.raises(error):
        state.on_event(finished(reason), 0.0)
    assert state.finished is not None


def test_events_of_a_later_release_are_passed_over() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_event(accepted(), 0.0)
    assert state.on_event(pb.StreamEvent(), 0.0) is None


def test_a_postponed_request_whose_time_is_over_ends_with_its_deadline_and_is_not_sent_without_time() -> None:
    state = stream(timeout_s=3.0)
    stopping = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server is stopping", retry_after_s=5.0)
    state.next_request(0.0)
    assert state.on_failure(stopping, 0.5) == 2.5
    with pytest.raises(DeadlineExceeded, match="was not done within 3 s"):
        state.next_request(3.0)


def test_a_name_that_was_taken_while_the_request_was_postponed_is_somebody_elses() -> None:
    state = stream()
    state.next_request(0.0)
    state.on_failure(
        CallFailed(grpc.StatusCode.UNAVAILABLE, "the server is stopping", retry_after_s=1.0), 0.1
    )
    state.next_request(1.1)
    with pytest.raises(AlreadyExists):
        state.on_failure(CallFailed(grpc.StatusCode.ALREADY_EXISTS, "request r1 is there"), 1.2)
