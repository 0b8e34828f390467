"""What clients send. Fields that are not here are tolerated and mean nothing; null means the default.

The names are those of https://platform.openai.com/docs/api-reference, and beyond them those of vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from ..sampling_params import MAX_LOGIT_BIASES


def _each(kind: type, name: str) -> BeforeValidator:
    """The first wrong entry ends the check: a list may have a million."""

    def check(value: object) -> object:
        if isinstance(value, list):
            for index, entry in enumerate(value):
                if not isinstance(entry, kind):
                    raise ValueError(f"entry {index} is not {name}")
        return value

    return BeforeValidator(check)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


#: One text or several. The last validator is asked first.
Texts = Annotated[
    list[str],
    _each(str, "a text"),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Integers = Annotated[list[int], _each(int, "an integer")]
Objects = Annotated[list[dict[str, Any]], _each(dict, "an object")]


def _few_biases(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIASES:
        raise ValueError(f"it has {len(value)} entries; at most {MAX_LOGIT_BIASES} are allowed")
    return value


LogitBias = Annotated[dict[int, float], BeforeValidator(_few_biases)]

_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}

#: A text, token ids, or a list of either: `prompts.completion_prompts` looks at it.
PromptField = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "string"}, _IDS, _TEXTS, {"type": "array", "items": _IDS}]}),
]

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
                    "role": {"type": "string"},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "object"}},
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
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Texts | None = None
    stop_token_ids: Integers | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None
    #: Anything but plain text is refused: what it asks for would not be kept.
    response_format: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: MessagesField
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: PromptField
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
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
