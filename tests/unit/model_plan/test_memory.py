"""Bytes per rank, against what torch says about the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ryzanstein.model_plan import (
    DTYPE_BYTES,
    FP8,
    INT8,
    UNQUANTIZED,
    ModelError,
    kv_bytes_per_token,
    parameter_count,
    parameters,
    read_model_config,
    refusal,
    weight_bytes_per_rank,
)
from tests.checkpoints import FAMILIES, Checkpoints, make_model

from .configs import record


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_counts_the_parameters_that_torch_counts(checkpoints: Checkpoints, family: str, tied: bool) -> None:
    config = read_model_config(checkpoints(family, tie_word_embeddings=tied))
    expected = sum(p.numel() for p in make_model(family, tie_word_embeddings=tied).parameters())
    assert parameter_count(config) == expected
    assert weight_bytes_per_rank(config, 1) == expected * 4
    assert weight_bytes_per_rank(config, 1, "bfloat16") == expected * 2


def test_padding_and_replicas_count() -> None:
    config = record(num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=3, intermediate_size=5, vocab_size=7)
    elements = 2 * 3 + 3 + 6 * 3 + 3 * 2 + 3 + 4 * 3 + 3 * 2 + 3 + 2 * 3
    assert weight_bytes_per_rank(config, 4) == elements * 4
    assert len(parameters(config, 0, 4)) == 9


def test_a_packed_tied_head_counts_too() -> None:
    tied = record(vocab_size=7, hidden_size=3, tie_word_embeddings=True)
    untied = record(vocab_size=7, hidden_size=3)
    assert weight_bytes_per_rank(tied, 2, packed=True) == weight_bytes_per_rank(untied, 2, packed=True)
    assert weight_bytes_per_rank(untied, 2, packed=True) == weight_bytes_per_rank(untied, 2)
    assert weight_bytes_per_rank(tied, 2) == weight_bytes_per_rank(untied, 2) - 4 * 3 * 4


def test_eight_bit_weights_take_a_byte_each_and_eight_per_output_feature() -> None:
    config = record(
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=10,
        dtype="bfloat16",
    )
    qkv, output, gate_up, down, head = 16 * 8, 8 * 8, 24 * 8, 8 * 12, 10 * 8
    features = 16 + 8 + 24 + 8 + 10
    in_bfloat16 = 10 * 8 + 3 * 8  # embedding and norms
    expected = qkv + output + gate_up + down + head + 8 * features + 2 * in_bfloat16
    assert weight_bytes_per_rank(config, 1, quantization=INT8) == expected
    tied = replace(config, tie_word_embeddings=True)
    assert weight_bytes_per_rank(tied, 1, packed=True, quantization=INT8) == expected
    assert weight_bytes_per_rank(tied, 1, quantization=INT8) == expected - head - 8 * 10
    with pytest.raises(ModelError, match="quantization 'int3' is not one of none, int8"):
        weight_bytes_per_rank(config, 1, quantization="int3")


def test_eight_bit_floats_take_a_byte_each_and_are_filled_up() -> None:
    config = record(
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden_size=32,
        intermediate_size=40,
        vocab_size=100,
        dtype="bfloat16",
    )
    scales = 4 * 256  # of a matrix with up to 256 output features
    qkv, output, gate_up, down, head = 64 * 32, 32 * 32, 80 * 32, 32 * 48, 112 * 32
    in_bfloat16 = 100 * 32 + 3 * 32
    expected = qkv + output + gate_up + down + head + 5 * scales + 2 * in_bfloat16
    assert weight_bytes_per_rank(config, 1, quantization=FP8) == expected
    tied = replace(config, tie_word_embeddings=True)
    assert weight_bytes_per_rank(tied, 1, packed=True, quantization=FP8) == expected


def test_what_a_device_can_hold_is_told_with_what_to_do() -> None:
    assert all(refusal(UNQUANTIZED, kind, dtype) == "" for kind in ("cpu", "cuda") for dtype in DTYPE_BYTES)
    assert [refusal(INT8, kind, "bfloat16") == "" for kind in ("cpu", "cuda")] == [True, False]
    assert [refusal(FP8, "cuda", dtype) == "" for dtype in ("bfloat16", "float16", "float32")] == [
        True,
        True,
        False,
    ]
    assert "--quantization int8 or none" in refusal(FP8, "cpu", "bfloat16")


def test_a_token_takes_keys_and_values_of_the_ranks_heads() -> None:
    config = record(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=4, dtype="bfloat16")
    assert [kv_bytes_per_token(config, world) for world in (1, 2, 4, 8)] == [
        2 * 3 * heads * 4 * 2 for heads in (2, 1, 1, 1)
    ]
    assert kv_bytes_per_token(config, 2, "float32") == 2 * 3 * 4 * 4


def test_an_unknown_dtype_or_size_is_refused() -> None:
    with pytest.raises(ModelError, match="dtype 'int4' is not supported; supported are float32"):
        kv_bytes_per_token(record(), 1, "int4")
    with pytest.raises(ModelError, match="sizes that work: 1, 2, 4"):
        kv_bytes_per_token(record(), 3)
