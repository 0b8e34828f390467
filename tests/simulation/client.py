"""A client: the real library's decisions (`ResumableStream`) over simulated calls, and what it does with its stream."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import grpc

from ryzanstein.v1 import inference_pb2
from ryzanstein_client.errors import RyzansteinError
from ryzanstein_client.resume import ResumableStream
from ryzanstein_client.retry import ResumePolicy
from ryzanstein_client.status import CallFailed
from ryzanstein_coordinator.requests import RequestKey

from .inference_call import InferenceCall
from .model import Continuation, right_continuation
from .network import Endpoint
from .plan import Ask

if TYPE_CHECKING:
    from .world import World

#: Nobody gives up here: what never ends is a defect.
PATIENCE = ResumePolicy(connect_timeout_s=1e6, resume_timeout_s=1e6)


class Client(Endpoint):
    """One request, over as many calls as it takes, to its end."""

    def __init__(self, world: World, ask: Ask, expected: Continuation) -> None:
        super().__init__(ask.request_id)
        self.world, self.ask, self.expected = world, ask, expected
        request = inference_pb2.GenerateRequest(request_id=ask.request_id, priority=ask.priority)
        request.token_ids.ids.extend(ask.prompt)
        request.sampling.max_tokens = ask.max_tokens
        request.sampling.seed = ask.seed
        if ask.timeout_s:
            request.timeout.FromNanoseconds(int(ask.timeout_s * 1e9))
        self._state = ResumableStream(
            request,
            address="coordinator",
            policy=PATIENCE,
            now_s=world.now_s,
            jitter=random.Random(ask.seed),
        )
        self.begun_s = world.now_s
        self.tokens: list[int] = []
        #: How it ended: "stop", "length" or the name of an error; empty while it has not.
        self.outcome = ""
        self.reason = ""
        self.ended_s = 0.0
        self.cancelled = False
        self._call: InferenceCall | None = None
        #: Position of the next token of this call.
        self._next_index = 0
        self._away = False

    @property
    def key(self) -> RequestKey:
        return "", self.ask.request_id

    @property
    def tokens_received(self) -> int:
        return len(self.tokens)

    # --- calls

    def open(self) -> None:
        """The next call: Generate, or Attach with the tokens received so far."""
        if self.outcome or self._away or self._call is not None:
            return
        world = self.world
        remaining_s = self._state.remaining_s(world.now_s)
        if remaining_s == 0.0 and self._call is None and self.world.now_s > self.begun_s:
            self._finish("DeadlineExceeded", "the client's own clock")
            return
        request = self._state.next_request(world.now_s)
        if isinstance(request, inference_pb2.GenerateRequest):
            copy = inference_pb2.GenerateRequest()
            copy.CopyFrom(request)
            request = copy
        self._next_index = len(self.tokens)
        call = InferenceCall(world, self, request, remaining_s)
        self._call = call
        call.begin()

    def leave_for(self, seconds: float) -> None:
        """Goes away with the tokens that it has, and comes back."""
        if self.outcome or self._away:
            return
        self.world.note("%s goes away with %d tokens", self.name, len(self.tokens))
        self._away = True
        call, self._call = self._call, None
        if call is not None:
            call.leave()

        def back() -> None:
            self._away = False
            self._failed(CallFailed(grpc.StatusCode.UNAVAILABLE, ""))

        self.world.timeline.after(seconds, back)

    def cut_off(self) -> None:
        """The network breaks its call."""
        if self._call is not None and self._call.connection is not None:
            self._call.connection.reset()

    def cancel(self) -> None:
        """Somebody calls Cancel for this request; the stream is read on."""
        coordinator = self.world.coordinator
        if self.outcome or coordinator is None:
            return
        self.cancelled = True
        self.world.note("%s is cancelled", self.name)
        coordinator.take(lambda: self.world.cancel(self.ask.request_id))

    # --- what a call brings

    def on_event(self, call: InferenceCall, event: inference_pb2.StreamEvent) -> None:
        if call is not self._call:
            return
        checks = self.world.checks
        if event.WhichOneof("event") == "tokens":
            checks.tokens(self, event.tokens.first_index, event.tokens.token_ids, self._next_index)
            self._next_index += len(event.tokens.token_ids)
        try:
            chunk = self._state.on_event(event, self.world.now_s)
        except CallFailed as failure:
            checks.fail(f"{self.name}: a stream that can't be used: {failure}")
            return
        except RyzansteinError as error:
            checks.fail(f"{self.name}: {type(error).__name__}: {error}")
            return
        if chunk is None:
            return
        self.tokens.extend(chunk.token_ids)
        if chunk.finish_reason is not None:
            self._call = None
            self._finish(chunk.finish_reason, "")

    def on_call_failed(self, call: InferenceCall, failure: CallFailed) -> None:
        if call is self._call:
            self._call = None
            self.world.note("the call of %s failed: %s", self.name, failure)
            self._failed(failure)

    def _failed(self, failure: CallFailed) -> None:
        if self.outcome:
            return
        try:
            delay_s = self._state.on_failure(failure, self.world.now_s)
        except RyzansteinError as error:
            self._finish(type(error).__name__, str(error))
            return
        self.world.timeline.after(delay_s, self.open)

    def _finish(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason, self.ended_s = outcome, reason, self.world.now_s
        self.world.note("%s ends: %s %s with %d tokens", self.name, outcome, reason, len(self.tokens))
        self.world.checks.client_ended(self)
        self.world.unfinished -= 1


def expected_of(ask: Ask, max_model_len: int, stop_ids: frozenset[int]) -> Continuation:
    """What the request must generate."""
    return right_continuation(ask.prompt, ask.seed, ask.max_tokens, max_model_len, stop_ids)
