"""The library's records as protobuf messages, and back."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from ryzanstein.v1 import inference_pb2, sampling_pb2

from .errors import InvalidRequest
from .types import (
    Chunk,
    Completion,
    Messages,
    Model,
    Prompt,
    RequestOptions,
    SamplingParams,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)

_SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
#: About thirty years: more is as good as none, and the wire can't carry every float.
_LONGEST_TIMEOUT_S = 1e9
_OTHER_OPTIONS = ("sampling", "priority", "timeout", "request_id", "model")


def text_request(prompt: Prompt, options: RequestOptions) -> inference_pb2.GenerateRequest:
    """A request to go on with a text or token ids."""
    request = _request(options)
    if isinstance(prompt, str):
        _set(request, "text", prompt)
    else:
        _set(request.token_ids, "ids", prompt, name="prompt")
        request.token_ids.SetInParent()  # an empty list is still a prompt of token ids
    return request


def chat_request(messages: Messages, options: RequestOptions) -> inference_pb2.GenerateRequest:
    """A request to answer a conversation."""
    request = _request(options)
    request.chat.CopyFrom(chat_prompt(messages))
    return request


def chat_prompt(messages: Messages) -> inference_pb2.ChatPrompt:
    """A conversation; the model's own template is applied by the server."""
    prompt = inference_pb2.ChatPrompt()
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InvalidRequest(
                f"messages[{index}] is {message!r}", hint='a message is {"role": "user", "content": "…"}'
            )
        encoded = prompt.messages.add()
        for key in ("role", "content"):
            _set(encoded, key, message[key], name=f"messages[{index}][{key!r}]")
    return prompt


def _request(options: RequestOptions) -> inference_pb2.GenerateRequest:
    unknown = sorted(set(options) - set(_SAMPLING_FIELDS) - set(_OTHER_OPTIONS))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    request = inference_pb2.GenerateRequest()
    _set(request, "request_id", options.get("request_id") or uuid.uuid4().hex)
    _set(request, "model", options.get("model"))
    _set(request, "priority", options.get("priority"))
    timeout_s = options.get("timeout")
    if timeout_s is not None:
        if not isinstance(timeout_s, int | float) or not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise InvalidRequest(f"timeout is {timeout_s!r}; it must be a positive number of seconds")
        request.timeout.FromNanoseconds(round(min(timeout_s, _LONGEST_TIMEOUT_S) * 1e9))
    for name in _SAMPLING_FIELDS:
        value = options.get(name)
        if value is None:
            value = getattr(options.get("sampling"), name, None)
        _set(request.sampling, name, [value] if name == "stop" and isinstance(value, str) else value)
    return request


def _set(message: ProtoMessage, field: str, value: Any, *, name: str | None = None) -> None:
    """Sets a field unless the value is None; what the wire can't carry is an InvalidRequest that names it."""
    if value is None:
        return
    try:
        if isinstance(value, Mapping):
            getattr(message, field).update(value)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name or field} is {_short(value)}: {error}") from error
    except AttributeError as error:  # one value where there may be several, or the other way round
        several = "a mapping" if field == "logit_bias" else "a list"
        raise InvalidRequest(f"{name or field} is {_short(value)}; it must be {several}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def logprobs_from(messages: Sequence[sampling_pb2.TokenLogprobs]) -> tuple[TokenLogprob, ...]:
    """One record per token."""
    return tuple(
        TokenLogprob(
            token_id=message.token_id,
            logprob=message.logprob,
            top=tuple(TopLogprob(top.token_id, top.logprob) for top in message.top),
        )
        for message in messages
    )


def model_from(message: inference_pb2.Model) -> Model:
    """A model of the server's list."""
    return Model(
        name=message.name,
        architecture=message.architecture,
        dtype=message.dtype,
        max_model_len=message.max_model_len,
        parameters=message.parameters,
    )


def usage_from(message: inference_pb2.Usage) -> Usage:
    """Token counts."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
    )


def completion_from(
    accepted: inference_pb2.RequestAccepted, finished: inference_pb2.RequestFinished, chunks: Sequence[Chunk]
) -> Completion:
    """The whole answer; the last of the chunks has the reason why it ended."""
    reason = chunks[-1].finish_reason
    assert reason is not None  # a stream without it ends with an exception
    logprobs = tuple(entry for chunk in chunks for entry in chunk.logprobs or ())
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        finish_reason=reason,
        logprobs=logprobs if chunks[-1].logprobs is not None else None,
        usage=usage_from(finished.usage),
        request_id=accepted.request_id,
        seed=accepted.seed,
        model=accepted.model,
        timings=Timings(
            queue_s=finished.timings.queue_s,
            first_token_s=finished.timings.first_token_s,
            total_s=finished.timings.total_s,
        ),
        stop=finished.stop or None,
    )
