"""What clients send. Fields that are not here are tolerated and mean nothing; null means the default.

The names are those of https://platform.openai.com/docs/api-reference, and beyond them those of vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..sampling_params import (
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
)

#: Prompts of one request.
MAX_PROMPTS = 512
#: Sequences of one prompt, as OpenAI bounds them.
MAX_N = 128
MOST_UINT32 = 2**32 - 1


def _each(kind: type, name: str) -> BeforeValidator:
    """The first wrong entry ends the check: a list may have a million."""

    def check(value: object) -> object:
        if isinstance(value, list):
            for index, entry in enumerate(value):
                if not isinstance(entry, kind):
                    raise ValueError(f"entry {index} is not {name}")
        return value

    return BeforeValidator(check)


def _shown(**bounds: Any) -> Any:
    """An optional field whose bounds are only described here: they are checked where every protocol's are."""
    return Field(default=None, json_schema_extra=bounds)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_STOP: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}

#: One text or several. The last validator is asked first.
Texts = Annotated[
    list[str],
    _each(str, "a text"),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}),
]
_ID: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MOST_UINT32}
_IDS: dict[str, Any] = {"type": "array", "items": _ID}
Integers = Annotated[list[int], _each(int, "an integer"), WithJsonSchema(_IDS)]
Objects = Annotated[list[dict[str, Any]], _each(dict, "an object")]


def _few_biases(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIASES:
        raise ValueError(f"it has {len(value)} entries; at most {MAX_LOGIT_BIASES} are allowed")
    return value


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_few_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LOGIT_BIASES,
        }
    ),
]

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_PROMPT_IDS: dict[str, Any] = {**_IDS, "minItems": 1}
_SEVERAL: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}

#: A text, token ids, or a list of either: `prompts.completion_prompts` looks at it.
PromptField = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [_TEXT, _PROMPT_IDS, {**_SEVERAL, "items": _TEXT}, {**_SEVERAL, "items": _PROMPT_IDS}]}
    ),
]

_PART: dict[str, Any] = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}

#: `prompts.chat_prompt` looks at them.
MessagesField = Annotated[
    Objects,
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"type": "string", "description": "Which there are the model's template says."},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": _PART},
                            {"type": "null"},
                        ]
                    },
                },
            },
        }
    ),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = None


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the numbers of tokens."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class GenerationRequest(_Body):
    """What both kinds of completions share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = _shown(minimum=1, maximum=MAX_N)
    max_tokens: int | None = _shown(minimum=1, maximum=MOST_UINT32)
    temperature: float | None = _shown(minimum=0, maximum=MAX_TEMPERATURE)
    top_p: float | None = _shown(exclusiveMinimum=0, maximum=1)
    top_k: int | None = _shown(minimum=-1, maximum=MOST_UINT32)
    min_p: float | None = _shown(minimum=0, maximum=1)
    seed: int | None = _shown(minimum=-(2**63), maximum=2**64 - 1)
    stop: Texts | None = None
    stop_token_ids: Integers | None = _shown(maxItems=MAX_STOP_TOKEN_IDS)
    presence_penalty: float | None = _shown(minimum=-2, maximum=2)
    frequency_penalty: float | None = _shown(minimum=-2, maximum=2)
    repetition_penalty: float | None = _shown(minimum=MIN_REPETITION_PENALTY, maximum=MAX_REPETITION_PENALTY)
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None
    #: Anything but plain text is refused: what it asks for would not be kept.
    response_format: dict[str, Any] | None = _shown(properties={"type": {"const": "text"}})

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: MessagesField
    max_completion_tokens: int | None = _shown(minimum=1, maximum=MOST_UINT32)
    logprobs: bool | None = None
    top_logprobs: int | None = _shown(minimum=0, maximum=MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    #: Neither is there yet; where `tool_choice` is "none" they are left unread.
    tools: list[Any] | None = _shown(maxItems=0)
    tool_choice: Any = None
    functions: list[Any] | None = _shown(maxItems=0)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: PromptField
    logprobs: int | None = _shown(minimum=0, maximum=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = _shown(maxLength=0)
    add_special_tokens: bool | None = None


class TokenizeRequest(_Body):
    """POST /tokenize: of a text or of messages."""

    prompt: str | None = None
    messages: MessagesField | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(_Body):
    """POST /detokenize."""

    tokens: Integers


class FailureDetails(BaseModel):
    """What went wrong, in words and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of every reply that is not 2xx; for the page that describes the API."""

    error: FailureDetails
