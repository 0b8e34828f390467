"""From the fields of a request to `SamplingParams`. Ranges that gRPC knows too are checked where it checks
them."""

from __future__ import annotations

from ryzanstein.v1.sampling_pb2 import SamplingParams

from ..errors import shown
from ..sampling_params import MAX_LOGPROBS
from .errors import BadRequestError
from .schemas import MAX_N, MOST_UINT32, ChatRequest, CompletionRequest, GenerationRequest

#: What /v1/completions generates if it is not told how much.
DEFAULT_COMPLETION_TOKENS = 16

_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def chat_sampling(request: ChatRequest) -> SamplingParams:
    """Raises BadRequestError naming the field."""
    _refuse_tools(request)
    params = _common(request)
    if request.max_completion_tokens is not None:
        params.max_tokens = _within("max_completion_tokens", request.max_completion_tokens, 1, MOST_UINT32)
    elif request.max_tokens is not None:
        params.max_tokens = _within("max_tokens", request.max_tokens, 1, MOST_UINT32)
    if request.logprobs:
        params.logprobs = _within("top_logprobs", request.top_logprobs or 0, 0, MAX_LOGPROBS)
    elif request.top_logprobs:
        raise BadRequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return params


def completion_sampling(request: CompletionRequest) -> SamplingParams:
    """Raises BadRequestError naming the field."""
    if request.suffix:
        raise BadRequestError("suffix is not supported: the model only continues a text", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise BadRequestError("best_of is not supported: ask for n and choose", param="best_of")
    params = _common(request)
    wanted = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    params.max_tokens = _within("max_tokens", wanted, 1, MOST_UINT32)
    if request.logprobs is not None:
        params.logprobs = _within("logprobs", request.logprobs, 0, MAX_LOGPROBS)
        if request.echo:
            params.prompt_logprobs = params.logprobs
    return params


def count_of(request: GenerationRequest) -> int:
    """How many sequences per prompt."""
    return _within("n", 1 if request.n is None else request.n, 1, MAX_N)


def choice_sampling(params: SamplingParams, choice: int) -> SamplingParams:
    """Those of one of several sequences of a prompt: its noise is keyed by the shared seed and its number."""
    own = SamplingParams()
    own.CopyFrom(params)
    own.choice = choice
    return own


def _common(request: GenerationRequest) -> SamplingParams:
    if request.response_format is not None and request.response_format.get("type", "text") != "text":
        raise BadRequestError(
            f"response_format {shown(request.response_format.get('type'))} is not supported; text is",
            param="response_format",
        )
    params = SamplingParams(ignore_eos=bool(request.ignore_eos))
    for name in _NUMBERS:
        value = getattr(request, name)
        if value is not None:
            setattr(params, name, value)
    if request.top_k is not None:  # -1 is vLLM's name for "off"
        params.top_k = max(0, _within("top_k", request.top_k, -1, MOST_UINT32))
    if request.seed is not None:
        # OpenAI's is a signed number: a negative one is taken as the same bits without a sign.
        params.seed = _within("seed", request.seed, -(2**63), 2**64 - 1) % 2**64
    if request.stop is not None:
        params.stop.extend(_texts(request.stop))
    for index, token_id in enumerate(request.stop_token_ids or ()):
        params.stop_token_ids.append(_within(f"stop_token_ids[{index}]", token_id, 0, MOST_UINT32))
    for token_id, bias in (request.logit_bias or {}).items():
        params.logit_bias[_within("logit_bias", token_id, 0, MOST_UINT32)] = _bias(token_id, bias)
    return params


def _refuse_tools(request: ChatRequest) -> None:
    """Silence would look like a model that never calls a tool."""
    for name, given in (("tools", request.tools), ("functions", request.functions)):
        if given and request.tool_choice != "none":
            raise BadRequestError(f"{name} are not supported: leave them out", param=name)


def _texts(stops: list[str]) -> list[str]:
    for index, stop in enumerate(stops):
        try:
            stop.encode()
        except UnicodeEncodeError:
            raise BadRequestError(
                f"stop[{index}] holds half of a surrogate pair, which is no character", param="stop"
            ) from None
    return stops


def _within(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        param = field.partition("[")[0]
        raise BadRequestError(
            f"{field} is {shown(value)}; it must be between {least} and {most}", param=param
        )
    return value


def _bias(token_id: int, bias: float) -> float:
    if not -100.0 <= bias <= 100.0:  # also NaN, and what no float of 32 bits can hold
        raise BadRequestError(
            f"logit_bias[{token_id}] is {bias}; it must be between -100 and 100", param="logit_bias"
        )
    return bias
