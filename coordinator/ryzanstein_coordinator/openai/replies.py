"""What clients get, for the page that describes the API. Replies are made as plain dictionaries in `choices`,
`logprobs` and `answer`; tools that test a server by its page hold the two together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .schemas import Failure

#: Of every path but those that say otherwise. FastAPI documents its own 422, which is never sent, where 4XX is missing.
FAILURES: dict[int | str, dict[str, Any]] = {"4XX": {"model": Failure}, "5XX": {"model": Failure}}

#: In the place of JSON when `stream` is set: `data: ` and a chunk, and at last `data: [DONE]`.
EVENTS: dict[str, Any] = {"text/event-stream": {}}


class CachedTokens(BaseModel):
    """Of the prompt, those that were not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ChatTop(BaseModel):
    """One token; a logprob that nobody knows any more is null."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatToken(ChatTop):
    """One token of the answer, and the likeliest in its place."""

    top_logprobs: list[ChatTop]


class ChatLogprobs(BaseModel):
    """One entry for each token."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceReply(BaseModel):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(BaseModel):
    """Of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceReply]
    usage: Usage


class CompletionLogprobsReply(BaseModel):
    """One entry for each token; the first of an echoed prompt has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None
    text_offset: list[int]


class CompletionChoiceReply(BaseModel):
    """One of the `n` texts of one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobsReply | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(BaseModel):
    """Of POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceReply]
    usage: Usage


class ModelReply(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelsReply(BaseModel):
    """There is one."""

    object: Literal["list"]
    data: list[ModelReply]


class TokensReply(BaseModel):
    """`token_strs` only if they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TextReply(BaseModel):
    """The text of the tokens."""

    prompt: str


def streamed(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The 200 of a path that answers at once or as a stream."""
    return {200: {"model": model, "content": EVENTS}}
