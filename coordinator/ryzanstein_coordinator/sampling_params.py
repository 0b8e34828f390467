"""What a request may ask of the sampler, checked once; afterwards every field that has a default is set."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import invalid_argument

from .errors import out_of_range

#: Below it a temperature is greedy: logits divided by it would not fit a float any more.
GREEDY_BELOW = 1e-5
MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 20
#: Of prompts whose logprobs are wanted: they are kept and sent as a whole.
MAX_SCORED_PROMPT_TOKENS = 16384
MAX_STOPS = 32
#: Of one stop text; all together they cost their length once, some milliseconds at the most.
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0


def draw_seed() -> int:
    """A seed for a request that has none: 53 bits, so that JSON clients can give it back unrounded."""
    return secrets.randbits(53)


def resolve_sampling(
    asked: SamplingParams,
    *,
    prompt_tokens: int,
    max_model_len: int,
    vocab_size: int,
    draw: Callable[[], int] = draw_seed,
) -> SamplingParams:
    """The parameters that the engine gets: defaults filled in, a seed drawn if there is none.

    Raises INVALID_ARGUMENT naming the field, its value and the allowed range.
    """
    resolved = SamplingParams()
    resolved.CopyFrom(asked)
    resolved.max_tokens = _max_tokens(asked, prompt_tokens, max_model_len)
    resolved.temperature = _temperature(asked)
    resolved.top_p = _number(asked, "top_p", 1.0, "greater than 0 and at most 1", lambda p: 0.0 < p <= 1.0)
    resolved.min_p = _number(asked, "min_p", 0.0, "between 0 and 1", lambda p: 0.0 <= p <= 1.0)
    resolved.top_k = 0 if asked.top_k >= vocab_size else asked.top_k
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = _number(asked, name, 0.0, "between -2 and 2", lambda x: -2.0 <= x <= 2.0)
        setattr(resolved, name, penalty)
    resolved.repetition_penalty = _number(
        asked,
        "repetition_penalty",
        1.0,
        f"between {MIN_REPETITION_PENALTY:g} and {MAX_REPETITION_PENALTY:g}",
        lambda x: MIN_REPETITION_PENALTY <= x <= MAX_REPETITION_PENALTY,
    )
    resolved.seed = asked.seed if asked.HasField("seed") else draw()
    if asked.HasField("logprobs") and asked.logprobs > MAX_LOGPROBS:
        raise out_of_range("logprobs", asked.logprobs, f"between 0 and {MAX_LOGPROBS}")
    _check_prompt_logprobs(asked, prompt_tokens)
    _check_stops(asked)
    _check_token_lists(asked, vocab_size)
    return resolved


def least_tokens(sampling: SamplingParams) -> int:
    """Of an output, unless its request fails. What is asked for may be resolved or not."""
    may_stop = not sampling.ignore_eos or sampling.stop or sampling.stop_token_ids
    return 1 if may_stop else max(1, sampling.max_tokens)


def check_sampling(asked: SamplingParams, *, max_model_len: int, vocab_size: int) -> None:
    """All checks that need no prompt, so that a wrong request is refused before its prompt is tokenised."""
    resolve_sampling(
        asked, prompt_tokens=0, max_model_len=max_model_len, vocab_size=vocab_size, draw=lambda: 0
    )


def _max_tokens(asked: SamplingParams, prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - prompt_tokens
    if room < 1:
        raise invalid_argument(
            f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer: the model takes "
            f"at most {max_model_len} tokens of prompt and answer together"
        )
    if not asked.HasField("max_tokens"):
        return room
    if asked.max_tokens < 1:
        raise out_of_range("max_tokens", asked.max_tokens, f"between 1 and {room}")
    if asked.max_tokens > room and not prompt_tokens:  # not tokenised yet
        raise out_of_range("max_tokens", asked.max_tokens, f"less than {max_model_len}, the model's limit")
    if asked.max_tokens > room:
        raise invalid_argument(
            f"the prompt's {prompt_tokens} tokens and max_tokens {asked.max_tokens} are "
            f"{prompt_tokens + asked.max_tokens} together, but the model takes at most {max_model_len}: "
            f"shorten the prompt or ask for at most {room} tokens"
        )
    return asked.max_tokens


def _temperature(asked: SamplingParams) -> float:
    temperature = _number(
        asked,
        "temperature",
        1.0,
        f"0 (greedy) or a number up to {MAX_TEMPERATURE:g}",
        lambda t: 0.0 <= t <= MAX_TEMPERATURE,
    )
    return 0.0 if temperature < GREEDY_BELOW else temperature


def _number(
    asked: SamplingParams, field: str, default: float, allowed: str, is_allowed: Callable[[float], bool]
) -> float:
    if not asked.HasField(field):  # type: ignore[arg-type]  # the stub lists the names, we iterate over some
        return default
    value: float = getattr(asked, field)
    if not math.isfinite(value) or not is_allowed(value):
        raise out_of_range(field, value, allowed)
    return value


def _check_prompt_logprobs(asked: SamplingParams, prompt_tokens: int) -> None:
    if not asked.HasField("prompt_logprobs"):
        return
    if asked.prompt_logprobs > MAX_LOGPROBS:
        raise out_of_range("prompt_logprobs", asked.prompt_logprobs, f"between 0 and {MAX_LOGPROBS}")
    if prompt_tokens > MAX_SCORED_PROMPT_TOKENS:
        raise invalid_argument(
            f"the prompt has {prompt_tokens} tokens; logprobs are given of prompts of at most "
            f"{MAX_SCORED_PROMPT_TOKENS}"
        )


def _check_stops(asked: SamplingParams) -> None:
    if len(asked.stop) > MAX_STOPS:
        raise out_of_range("the number of stop texts", len(asked.stop), f"at most {MAX_STOPS}")
    for index, stop in enumerate(asked.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise invalid_argument(
                f"stop[{index}] has {len(stop)} characters; a stop text has 1 to {MAX_STOP_CHARACTERS}"
            )


def _check_token_lists(asked: SamplingParams, vocab_size: int) -> None:
    if len(asked.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise out_of_range(
            "the number of stop_token_ids", len(asked.stop_token_ids), f"at most {MAX_STOP_TOKEN_IDS}"
        )
    for index, token_id in enumerate(asked.stop_token_ids):
        if token_id >= vocab_size:
            raise out_of_range(f"stop_token_ids[{index}]", token_id, f"between 0 and {vocab_size - 1}")
    if len(asked.logit_bias) > MAX_LOGIT_BIASES:
        raise out_of_range(
            "the number of logit_bias entries", len(asked.logit_bias), f"at most {MAX_LOGIT_BIASES}"
        )
    for token_id, bias in asked.logit_bias.items():
        if token_id >= vocab_size:
            raise out_of_range("a token id in logit_bias", token_id, f"between 0 and {vocab_size - 1}")
        if not math.isfinite(bias) or not -100.0 <= bias <= 100.0:
            raise out_of_range(f"logit_bias[{token_id}]", bias, "between -100 and 100")
