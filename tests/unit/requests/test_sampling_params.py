"""What a request may ask for, and what it is told when it asks for something else."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.sampling_params import check_sampling, resolve_sampling


def resolve(asked: SamplingParams, *, prompt_tokens: int = 10) -> SamplingParams:
    return resolve_sampling(
        asked, prompt_tokens=prompt_tokens, max_model_len=100, vocab_size=1000, draw=lambda: 4711
    )


def test_every_default_is_filled_in() -> None:
    resolved = resolve(SamplingParams())

    assert resolved == SamplingParams(
        max_tokens=90,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=4711,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
    )
    defaults = [field.name for field in SamplingParams.DESCRIPTOR.fields if field.has_presence]
    assert [name for name in defaults if not resolved.HasField(name)] == [  # type: ignore[arg-type]
        "logprobs",
        "prompt_logprobs",
    ]


def test_what_was_asked_stays() -> None:
    asked = SamplingParams(
        max_tokens=5,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=2**64 - 1,
        stop=["\n\n", "🚀"],
        stop_token_ids=[3, 999],
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=1.2,
        logit_bias={5: 100.0, 6: -100.0},
        logprobs=20,
        ignore_eos=True,
        choice=3,
    )

    assert resolve(asked) == asked


def test_an_unusable_small_temperature_is_greedy() -> None:
    assert resolve(SamplingParams(temperature=1e-30)).temperature == 0.0


def test_top_k_beyond_the_vocabulary_is_off() -> None:
    assert resolve(SamplingParams(top_k=1000)).top_k == 0
    assert resolve(SamplingParams(top_k=999)).top_k == 999


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_tokens", 0, "between 1 and 90"),
        ("temperature", -0.1, "0 \\(greedy\\) or a number up to 100"),
        ("temperature", math.nan, "0 \\(greedy\\)"),
        ("temperature", math.inf, "0 \\(greedy\\)"),
        ("top_p", 0.0, "greater than 0 and at most 1"),
        ("top_p", 1.5, "greater than 0 and at most 1"),
        ("top_p", math.nan, "greater than 0 and at most 1"),
        ("min_p", -0.5, "between 0 and 1"),
        ("min_p", math.nan, "between 0 and 1"),
        ("presence_penalty", 2.5, "between -2 and 2"),
        ("frequency_penalty", -math.inf, "between -2 and 2"),
        ("repetition_penalty", 0.0, "between 0.01 and 100"),
        ("repetition_penalty", math.nan, "between 0.01 and 100"),
        ("logprobs", 21, "between 0 and 20"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_value_and_the_range(
    field: str, value: float, allowed: str
) -> None:
    asked = SamplingParams(**{field: value})  # type: ignore[arg-type]

    with pytest.raises(StatusError, match=f"{field} is .*{allowed}") as caught:
        resolve(asked)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (SamplingParams(stop=["a", ""]), r"stop\[1\] has 0 characters"),
        (SamplingParams(stop=["x" * 257]), r"stop\[0\] has 257 characters; .* 1 to 256"),
        (SamplingParams(stop=["x"] * 33), "number of stop texts is 33; it must be at most 32"),
        (SamplingParams(stop_token_ids=[1, 1000]), r"stop_token_ids\[1\] is 1000; .* between 0 and 999"),
        (SamplingParams(stop_token_ids=[1] * 1025), "number of stop_token_ids is 1025"),
        (SamplingParams(logit_bias={1000: 1.0}), "logit_bias is 1000; .* between 0 and 999"),
        (SamplingParams(logit_bias={7: 100.5}), r"logit_bias\[7\] is 100.5; .* between -100 and 100"),
        (SamplingParams(logit_bias={7: math.nan}), r"logit_bias\[7\] is nan"),
    ],
)
def test_lists_are_checked_entry_by_entry(asked: SamplingParams, message: str) -> None:
    with pytest.raises(StatusError, match=message):
        resolve(asked)


def test_prompt_and_answer_must_fit_together_and_the_numbers_are_said() -> None:
    with pytest.raises(StatusError, match=r"10 tokens and max_tokens 91 are 101 together, .* at most 100"):
        resolve(SamplingParams(max_tokens=91))
    with pytest.raises(StatusError, match=r"the prompt has 100 tokens, .* at most 100 tokens"):
        resolve(SamplingParams(), prompt_tokens=100)
    assert resolve(SamplingParams(max_tokens=90)).max_tokens == 90


def test_what_needs_no_prompt_is_checked_without_one() -> None:
    with pytest.raises(StatusError, match="top_p"):
        check_sampling(SamplingParams(top_p=7), max_model_len=100, vocab_size=1000)
    with pytest.raises(StatusError, match=r"max_tokens is 101; it must be less than 100, the model's limit"):
        check_sampling(SamplingParams(max_tokens=101), max_model_len=100, vocab_size=1000)


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
counts = st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(0, 120))


@given(
    st.fixed_dictionaries(
        {
            "max_tokens": counts,
            "temperature": numbers,
            "top_p": numbers,
            "top_k": counts,
            "min_p": numbers,
            "seed": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
            "stop": st.lists(st.text(max_size=5), max_size=3),
            "stop_token_ids": st.lists(st.integers(0, 2**32 - 1), max_size=3),
            "presence_penalty": numbers,
            "frequency_penalty": numbers,
            "repetition_penalty": numbers,
            "logit_bias": st.dictionaries(st.integers(0, 2000), st.floats(width=32), max_size=3),
            "logprobs": counts,
        }
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_asked_is_refused_in_words_or_safe_to_sample_with(fields: dict[str, Any]) -> None:
    asked = SamplingParams(**{name: value for name, value in fields.items() if value is not None})
    resolved, refusal = None, None
    try:
        resolved = resolve(asked)
    except StatusError as error:
        refusal = error
    if resolved is None:
        assert refusal is not None
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        return

    assert 1 <= resolved.max_tokens <= 90
    assert resolved.temperature == 0.0 or 1e-5 <= resolved.temperature <= 100.0
    assert 0.0 < resolved.top_p <= 1.0
    assert 0.0 <= resolved.min_p <= 1.0
    assert 0 <= resolved.top_k < 1000
    assert resolved.repetition_penalty > 0.0
    assert abs(resolved.presence_penalty) <= 2.0
    assert abs(resolved.frequency_penalty) <= 2.0
    assert all(math.isfinite(bias) for bias in resolved.logit_bias.values())
    assert resolve(resolved) == resolved
