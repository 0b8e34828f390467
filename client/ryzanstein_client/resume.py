"""Which call comes next and which token is new: the part of a stream that must hold when connections don't.

No I/O and no clock here: the time is passed in, requests and events are plain messages. The driver
(`aio_stream`) asks for the next request, feeds in every event and every failure, and does as it is told.

    next_request(now) → Generate, or Attach with the tokens received so far
    on_event(event, now) → a chunk to deliver, or None (nothing new); raises CallFailed for an unusable stream
    on_failure(failure, now) → seconds to wait before next_request(); raises the error to give up with

The text of a stream is a function of its tokens (the server detokenizes token by token), so text is delivered
exactly once if tokens are. Text that comes without a token (what was held back at the end) is compared with
what came at the same place before.
"""

from __future__ import annotations

import random

import grpc

from ryzanstein.v1 import inference_pb2, sampling_pb2

from .errors import Cancelled, DeadlineExceeded, InternalError, RyzansteinError
from .messages import logprobs_from
from .retry import Outage, ResumePolicy, given_up
from .status import CallFailed, error_from
from .types import Chunk, FinishReason

_FINISH_REASONS: dict[int, FinishReason] = {
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
}


class ResumableStream:
    """One request over as many calls as it takes."""

    def __init__(
        self,
        request: inference_pb2.GenerateRequest,
        *,
        address: str,
        policy: ResumePolicy,
        now_s: float,
        jitter: random.Random | None = None,
    ) -> None:
        self._request = request
        self._address = address
        self._policy = policy
        self._outage = Outage(policy, jitter or random.Random())  # noqa: S311 - spreads retries, guards nothing
        self._wants_logprobs = request.sampling.HasField("logprobs")
        self._timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        self._deadline_s = None if self._timeout_s is None else now_s + self._timeout_s
        self._attach = False
        self._failed = False
        #: A call broke before anything was heard of it: the request may be there.
        self._may_have_arrived = False
        self._received: list[int] = []
        self._tail = ""  # text that came without a token since the last token
        self._tail_matched = 0  # how much of it this call has repeated
        self.accepted: inference_pb2.RequestAccepted | None = None
        self.finished: inference_pb2.RequestFinished | None = None

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def tokens_received(self) -> int:
        return len(self._received)

    @property
    def attempts(self) -> int:
        """How many calls failed since something new arrived."""
        return self._outage.attempts

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds until the deadline, not below 0; None if there is none."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - now_s)

    def next_request(self, now_s: float) -> inference_pb2.GenerateRequest | inference_pb2.AttachRequest:
        """The request of the next call. Raises DeadlineExceeded if none was taken and no time is left."""
        self._tail_matched = 0
        if not self._attach:
            remaining_s = self.remaining_s(now_s)
            if remaining_s == 0.0 and self._failed:
                raise self._deadline_error()
            if remaining_s is not None:
                self._request.timeout.FromNanoseconds(round(remaining_s * 1e9))
            return self._request
        return inference_pb2.AttachRequest(request_id=self.request_id, received_token_ids=self._received)

    def on_event(self, event: inference_pb2.StreamEvent, now_s: float) -> Chunk | None:
        """The next chunk to deliver; None if the event brings nothing new.

        Raises CallFailed (end this call and tell `on_failure`) if the stream skips or divides tokens, and a
        RyzansteinError if the request is over without an answer or the tokens contradict those delivered.
        """
        kind = event.WhichOneof("event")
        if kind == "accepted":
            self._on_accepted(event.accepted, now_s)
            return None
        if self.accepted is None:
            raise InternalError(
                f"{self._address} answered request {self.request_id} without accepting it first"
            )
        if kind == "finished":
            return self._on_finished(event.finished)
        if kind == "tokens":
            self._outage.connected(now_s)
            return self._on_tokens(event.tokens)
        return None  # a kind of event that a later release knows

    def on_failure(self, failure: CallFailed, now_s: float) -> float:
        """Seconds to wait before the next call; raises the error with which to give up."""
        known = self.accepted is not None
        self._failed = True
        # Of a request that was not taken only that: an overload is no better for being asked again.
        passing = failure.postponed and (known or failure.code is grpc.StatusCode.UNAVAILABLE)
        if failure.code is grpc.StatusCode.NOT_FOUND and self._attach and not self._received:
            self._attach = False  # nothing was delivered: the request can be made anew
        elif failure.code is grpc.StatusCode.ALREADY_EXISTS and not self._attach and self._may_have_arrived:
            self._attach = True  # an earlier call did arrive
        elif not failure.broken and not passing:
            raise self._refusal(failure, now_s) from failure
        else:
            self._may_have_arrived |= failure.broken
            self._attach = known
        remaining_s = self.remaining_s(now_s)
        if remaining_s == 0.0:
            raise self._deadline_error() from failure
        limit_s = self._policy.resume_timeout_s if known else self._policy.connect_timeout_s
        delay_s = self._outage.failed(now_s, limit_s, failure.retry_after_s or 0.0)
        if delay_s is None and passing and not known:
            raise error_from(failure) from failure
        if delay_s is None:
            raise given_up(
                self._address,
                failure,
                attempts=self._outage.attempts,
                seconds=self._outage.elapsed_s(now_s),
                lost=f"{self.tokens_received} tokens of request {self.request_id}" if known else "",
                tokens_received=self.tokens_received,
            ) from failure
        return delay_s if remaining_s is None else min(delay_s, remaining_s)

    def _on_accepted(self, accepted: inference_pb2.RequestAccepted, now_s: float) -> None:
        self._outage.connected(now_s)
        if self.accepted is None:
            self._outage.over()
            self.accepted = accepted
            # Made anew, the request must be the one whose seed was reported.
            self._request.sampling.seed = accepted.seed
        self._attach = True

    def _on_tokens(self, chunk: inference_pb2.TokenChunk) -> Chunk | None:
        have, first, ids = len(self._received), chunk.first_index, list(chunk.token_ids)
        if first > have:
            raise CallFailed.unusable(f"tokens {have} to {first - 1} are missing")
        if first < have:
            if self._received[first : first + len(ids)] != ids[: have - first]:
                raise InternalError(
                    f"{self._address} sent other tokens than before at index {first} of request "
                    f"{self.request_id}"
                )
            if first + len(ids) <= have:
                return None
            raise CallFailed.unusable(
                f"tokens {first} to {first + len(ids) - 1} came at once, but {have} were received"
            )
        text = self._unseen(chunk.text)
        if ids:
            self._received.extend(ids)
            self._tail, self._tail_matched = "", 0
        elif not text:
            return None
        self._outage.over()
        return Chunk(
            text=text,
            token_ids=tuple(ids),
            logprobs=logprobs_from(chunk.logprobs) if self._wants_logprobs else None,
        )

    def _unseen(self, text: str) -> str:
        """Text at the place of the last token, without what came there before the connection broke."""
        expected = self._tail[self._tail_matched :]
        if expected.startswith(text):
            self._tail_matched += len(text)
            return ""
        unseen = text.removeprefix(expected)
        self._tail += unseen
        self._tail_matched = len(self._tail)
        return unseen

    def _on_finished(self, finished: inference_pb2.RequestFinished) -> Chunk:
        self.finished = finished
        reason = _FINISH_REASONS.get(finished.reason)
        if reason is not None:
            return Chunk(
                text="", token_ids=(), finish_reason=reason, logprobs=() if self._wants_logprobs else None
            )
        if finished.reason == sampling_pb2.FINISH_REASON_DEADLINE:
            raise self._deadline_error()
        what = f"request {self.request_id}"
        if finished.reason == sampling_pb2.FINISH_REASON_CANCELLED:
            raise Cancelled(f"{what} was cancelled after {self.tokens_received} tokens")
        raise InternalError(f"{what} failed after {self.tokens_received} tokens")

    def _refusal(self, failure: CallFailed, now_s: float) -> RyzansteinError:
        if failure.code is grpc.StatusCode.NOT_FOUND and self._attach and self.remaining_s(now_s) == 0.0:
            return (
                self._deadline_error()
            )  # a coordinator that was started again forgets those whose time is over
        if failure.code is grpc.StatusCode.NOT_FOUND and self._received:
            message = (
                f"{self._address} no longer knows request {self.request_id}, of which {self.tokens_received} "
            )
            return error_from(CallFailed(failure.code, f"{message}tokens were received: {failure.message}"))
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and self.remaining_s(now_s) == 0.0:
            return self._deadline_error()  # sooner it is a refusal: the server says why it can't be met
        return error_from(failure)

    def _deadline_error(self) -> DeadlineExceeded:
        within = "in time" if self._timeout_s is None else f"within {self._timeout_s:g} s"
        return DeadlineExceeded(
            f"request {self.request_id} was not done {within}, {self.tokens_received} tokens came"
        )
