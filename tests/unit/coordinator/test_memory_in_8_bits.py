"""The ledger of weights in 8 bits: what they take, on which devices, and who is told of them."""

from __future__ import annotations

import pytest

from ryzanstein_coordinator.memory_ledger import rank_needs
from ryzanstein_coordinator.resource_allocator import ResourceAllocator

from .cluster_builders import GIB, configuration, llama_8b, tiny_model
from .test_memory import share


def test_eight_bit_weights_need_half_of_bfloat16_and_a_little_room_for_rounded_activations() -> None:
    plain, rounded = (
        rank_needs(
            llama_8b(),
            2,
            dtype="bfloat16",
            kind="cpu",
            max_batched_tokens=512,
            max_num_seqs=64,
            quantization=quantization,
        )
        for quantization in ("none", "int8")
    )
    embedding = 2 * 128256 // 2 * 4096
    assert rounded.weights - embedding == pytest.approx((plain.weights - embedding) / 2, rel=0.002)
    assert rounded.workspace - plain.workspace == 512 * (14336 // 2 + 4)
    assert rounded.kv_per_token == plain.kv_per_token


def test_eight_bit_weights_are_for_cpus_and_whoever_has_gpus_is_told_what_to_do() -> None:
    config = configuration(tensor_parallel_size=1, quantization="int8", dtype="bfloat16")
    plan = ResourceAllocator(config, tiny_model()).plan(1, (share(80 * GIB),))
    assert not plan.fits
    assert plan.refusal == (
        "int8 is for workers on CPUs; on GPUs serve with --quantization fp8 or none, or give --device cpu"
    )
    assert ResourceAllocator(config, tiny_model()).plan(1, (share(8 * GIB, "cpu"),)).fits


def test_a_cpu_that_is_too_small_for_bfloat16_is_told_of_eight_bits() -> None:
    config = configuration(tensor_parallel_size=1, dtype="bfloat16", max_model_len=2048, max_num_seqs=4)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(14 * GIB, "cpu"),))
    assert "--quantization int8 fits: linear layers' weights in 8-bit integers" in plan.advice


def test_eight_bit_floats_need_half_of_bfloat16_on_a_gpu_and_room_for_rounding() -> None:
    plain, rounded = (
        rank_needs(
            llama_8b(),
            2,
            dtype="bfloat16",
            kind="cuda",
            max_batched_tokens=512,
            max_num_seqs=64,
            quantization=quantization,
        )
        for quantization in ("none", "fp8")
    )
    embedding = 2 * 128256 // 2 * 4096
    assert rounded.weights - embedding == pytest.approx((plain.weights - embedding) / 2, rel=0.002)
    assert rounded.workspace - plain.workspace == 512 * (14336 // 2 + 4) + 64 * 2**20


def test_eight_bit_floats_are_for_gpus_and_for_half_precision() -> None:
    config = configuration(tensor_parallel_size=1, quantization="fp8", dtype="bfloat16")
    gpu, cpu = (share(80 * GIB),), (share(80 * GIB, "cpu"),)
    assert ResourceAllocator(config, tiny_model()).plan(1, gpu).fits
    refused = ResourceAllocator(config, tiny_model()).plan(1, cpu).refusal
    assert refused == "fp8 is for workers on GPUs; on CPUs serve with --quantization int8 or none"
    wide = configuration(tensor_parallel_size=1, quantization="fp8", dtype="float32")
    refused = ResourceAllocator(wide, tiny_model()).plan(1, gpu).refusal
    assert refused.startswith("fp8 computes in bfloat16 or float16, not in float32: give --dtype bfloat16")


def test_a_gpu_that_is_too_small_for_bfloat16_is_told_of_eight_bit_floats() -> None:
    config = configuration(tensor_parallel_size=1, dtype="bfloat16", max_model_len=2048, max_num_seqs=4)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(16 * GIB),))
    advice = "--quantization fp8 fits: linear layers' weights in 8-bit floats, on GPUs since Ada and Hopper"
    assert advice in plan.advice
