"""InferenceService: decodes a call, asks the front door, encodes what it reads. Nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import structlog

from ryzanstein.v1 import inference_pb2 as pb
from ryzanstein.v1.inference_pb2_grpc import InferenceServiceServicer
from ryzanstein.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP
from ryzanstein.wire import StatusError, invalid_argument

from .front_door import FrontDoor
from .intake import GenerateCall, Intake
from .output import TokenSpan
from .prompts import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from .requests import Ending, RequestRecord, Subscription

Context = grpc.aio.ServicerContext[Any, Any]

_REASONS = {"stop": FINISH_REASON_STOP, "length": FINISH_REASON_LENGTH}


class InferenceServicer(InferenceServiceServicer):
    """`owner_of` names whose API key a call carries; requests of different owners don't see each other."""

    def __init__(
        self,
        front_door: FrontDoor,
        intake: Intake,
        *,
        owner_of: Callable[[Context], str] = lambda _context: "",
    ) -> None:
        self._front_door = front_door
        self._intake = intake
        self._owner_of = owner_of

    async def Generate(  # noqa: N802 - the name is the protocol's
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        call = GenerateCall(
            prompt=_prompt_of(request),
            sampling=request.sampling,
            request_id=request.request_id,
            model=request.model,
            priority=request.priority,
            timeout_s=_timeout_s(request, context),
            owner=self._owner_of(context),
        )
        if call.sampling.HasField("prompt_logprobs"):
            raise invalid_argument("prompt_logprobs are not sent over gRPC; ask /v1/completions with echo")
        subscription = await self._front_door.generate(call)
        # A call has a task, and with it a context, of its own.
        structlog.contextvars.bind_contextvars(request_id=subscription.record.spec.request_id)
        self._leave_when_done(context, subscription)
        try:
            response = pb.GenerateResponse()
            _fill_accepted(response.event, subscription.record, self._front_door.epoch)
            yield response
            while True:
                response = pb.GenerateResponse()
                going_on = fill_event(response.event, subscription.record, await subscription.next())
                yield response
                if not going_on:
                    return
        finally:
            self._front_door.leave(subscription)

    async def Attach(  # noqa: N802
        self, request: pb.AttachRequest, context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        subscription = await self._front_door.attach(
            request.request_id, request.received_token_ids, owner=self._owner_of(context)
        )
        structlog.contextvars.bind_contextvars(request_id=subscription.record.spec.request_id)
        self._leave_when_done(context, subscription)
        try:
            response = pb.AttachResponse()
            _fill_accepted(response.event, subscription.record, self._front_door.epoch)
            yield response
            while True:
                response = pb.AttachResponse()
                going_on = fill_event(response.event, subscription.record, await subscription.next())
                yield response
                if not going_on:
                    return
        finally:
            self._front_door.leave(subscription)

    def _leave_when_done(self, context: Context, subscription: Subscription) -> None:
        """A call that ends while a message waits to be written leaves its generator to the garbage collector;
        this hears of it at once."""
        context.add_done_callback(cast("Any", lambda _: self._front_door.leave(subscription)))

    async def Cancel(  # noqa: N802
        self, request: pb.CancelRequest, context: Context
    ) -> pb.CancelResponse:
        cancelled = self._front_door.cancel(request.request_id, owner=self._owner_of(context))
        return pb.CancelResponse(cancelled=cancelled, epoch=self._front_door.epoch)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        model = self._intake.model()
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=model.name,
                    architecture=model.architecture,
                    dtype=model.dtype,
                    max_model_len=model.max_model_len,
                    parameters=model.parameters,
                )
            ]
        )

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        model = self._intake.model_named(request.model)
        token_ids = await self._intake.prompts.tokenize(_text_of(request), model)
        return pb.TokenizeResponse(token_ids=token_ids, max_model_len=model.max_model_len)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        model = self._intake.model_named(request.model)
        text = await self._intake.prompts.detokenize(request.token_ids, model)
        return pb.DetokenizeResponse(text=text)


def fill_event(event: pb.StreamEvent, record: RequestRecord, item: TokenSpan | Ending) -> bool:
    """The event of what was read; False if it is the last. Raises the StatusError of a bad end."""
    if isinstance(item, TokenSpan):
        chunk = event.tokens
        chunk.first_index = item.first_index
        chunk.token_ids.extend(item.token_ids)
        chunk.text = item.text
        for logprobs in item.logprobs:
            chunk.logprobs.add().ParseFromString(logprobs)
        return True
    if item.error is not None:  # a copy: one that is raised keeps the frames that it came through alive
        raise StatusError(item.error.code, item.error.message, retry_after_s=item.error.retry_after_s)
    finished = event.finished
    finished.reason = _REASONS[item.outcome]
    finished.stop = item.stop
    finished.usage.prompt_tokens = len(record.spec.prompt)
    finished.usage.completion_tokens = len(record.output)
    finished.usage.cached_tokens = record.cached_tokens
    timings, ended_at = record.timings, record.timings.ended_at
    assert ended_at is not None
    finished.timings.queue_s = timings.queue_s(ended_at)
    finished.timings.first_token_s = timings.first_token_s()
    finished.timings.total_s = timings.total_s(ended_at)
    return False


def _fill_accepted(event: pb.StreamEvent, record: RequestRecord, epoch: int) -> None:
    accepted = event.accepted
    accepted.request_id = record.spec.request_id
    accepted.seed = record.spec.sampling.seed
    accepted.prompt_tokens = len(record.spec.prompt)
    accepted.model = record.spec.model
    accepted.epoch = epoch


def _timeout_s(request: pb.GenerateRequest, context: Context) -> float | None:
    """The request's own timeout or the call's deadline, whichever is earlier."""
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        remaining_s = max(remaining_s, 1e-3)  # one that is over is DEADLINE_EXCEEDED, not a wrong timeout
    if not request.HasField("timeout"):
        return remaining_s
    own_s = request.timeout.seconds + request.timeout.nanos / 1e9
    return own_s if remaining_s is None else min(own_s, remaining_s)


def _prompt_of(request: pb.GenerateRequest) -> Prompt:
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return TextPrompt(request.text)
    if kind == "token_ids":
        return TokenPrompt(request.token_ids.ids)
    if kind == "chat":
        return _chat_of(request.chat, add_special_tokens=False)
    raise invalid_argument("the request has no prompt; set text, token_ids or chat")


def _text_of(request: pb.TokenizeRequest) -> TextPrompt | ChatPrompt:
    kind = request.WhichOneof("prompt")
    if kind == "text":
        wanted = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return TextPrompt(request.text, add_special_tokens=wanted)
    if kind == "chat":
        return _chat_of(request.chat, add_special_tokens=request.add_special_tokens)
    raise invalid_argument("the request has no prompt; set text or chat")


def _chat_of(chat: pb.ChatPrompt, *, add_special_tokens: bool) -> ChatPrompt:
    return ChatPrompt(
        messages=[{"role": message.role, "content": message.content} for message in chat.messages],
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        add_special_tokens=add_special_tokens,
    )
