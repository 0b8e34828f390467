"""What goes in and what comes out: plain frozen records, free of gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

#: Text, or token ids.
Prompt = str | Sequence[int]

#: "stop": an end-of-sequence id, a stop id or a stop text. "length": max_tokens or the model's limit.
FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One turn of a conversation; roles are "system", "user", "assistant" or what else the template knows."""

    role: str
    content: str


#: A conversation, oldest turn first. Any mapping with the keys of a `Message` will do.
Messages = Iterable[Message | Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. None leaves a field to the server, whose defaults are named here."""

    #: Most tokens to generate. Default: up to the model's length limit.
    max_tokens: int | None = None
    #: 0 is greedy. Default: 1.0.
    temperature: float | None = None
    #: Smallest set of tokens whose probabilities reach it, in (0, 1]. Default: 1.0 (off).
    top_p: float | None = None
    #: Only the k most probable tokens. Default: 0 (off).
    top_k: int | None = None
    #: Drops tokens less probable than min_p times the most probable, in [0, 1]. Default: 0 (off).
    min_p: float | None = None
    #: Default: one is drawn; the result reports it, so that the request can be repeated.
    seed: int | None = None
    #: Text or texts that end the stream and are not delivered.
    stop: str | Sequence[str] | None = None
    #: Token ids that end the stream besides the model's own.
    stop_token_ids: Sequence[int] | None = None
    #: In [-2, 2]: subtracted once from the logit of every token that was generated. Default: 0.
    presence_penalty: float | None = None
    #: In [-2, 2]: subtracted for each time that the token was generated. Default: 0.
    frequency_penalty: float | None = None
    #: Divides (or multiplies, if negative) the logits of tokens seen in prompt or output. Default: 1.0.
    repetition_penalty: float | None = None
    #: Added to the logits of these token ids, each in [-100, 100].
    logit_bias: Mapping[int, float] | None = None
    #: 0: the logprob of each chosen token; n: those of the n most probable too, at most 20. Default: none.
    logprobs: int | None = None
    #: Generate on past the model's end-of-sequence ids.
    ignore_eos: bool | None = None


class RequestOptions(TypedDict, total=False):
    """The keywords of `stream`, `generate` and `chat`. Those of `SamplingParams` mean the same as there."""

    #: A whole set of sampling parameters; the other keywords win over its fields.
    sampling: SamplingParams | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    ignore_eos: bool | None
    #: Higher goes first; 0 is usual.
    priority: int | None
    #: Seconds until the last token must have come, lost connections included.
    timeout: float | None
    #: Unique among the caller's requests, 1 to 128 printable ASCII characters. Default: a random one.
    request_id: str | None
    #: The name of the model, if the server has several.
    model: str | None


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been chosen."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a chosen token's probability, and its rivals', most probable first.

    Taken from the raw logits, before penalties and temperature.
    """

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were found in the server's cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds, as the coordinator saw it."""

    #: From admission until a group was given the request.
    queue_s: float
    #: From admission to the first token.
    first_token_s: float
    #: From admission to the end.
    total_s: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """What arrived at once. Only the last chunk of a stream has a finish_reason; its text may be empty.

    `text` may be empty while a character is incomplete, and may hold text of earlier tokens. `logprobs` has
    one entry per token if they were asked for, and is None otherwise.
    """

    text: str
    token_ids: tuple[int, ...]
    #: "stop" or "length"; None before the last chunk.
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `seed` repeats it; `stop` is the stop text that ended it, if one did."""

    text: str
    token_ids: tuple[int, ...]
    #: "stop": an end-of-sequence id, a stop id or a stop text. "length": max_tokens or the model's limit.
    finish_reason: FinishReason
    #: One per token if they were asked for, else None.
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    request_id: str
    #: The one given, or the one drawn.
    seed: int
    #: The name under which it is served.
    model: str
    timings: Timings
    #: The stop text that ended it; None if none did.
    stop: str | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server offers. `max_model_len`: most tokens of prompt and output together."""

    name: str
    architecture: str
    dtype: str
    max_model_len: int
    parameters: int
