"""The ledger, what fits, and what is said when it does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.memory_ledger import format_bytes, rank_needs
from ryzanstein_coordinator.memory_plan import CPU_CACHE_BYTES, DeviceShare, MemoryPlanner
from ryzanstein_coordinator.resource_allocator import ResourceAllocator

from .cluster_builders import GIB, MIB, configuration, cpu, gpu, llama_8b, tiny_model, worker


def share(total_bytes: int, kind: str = "cuda", **changes: Any) -> DeviceShare:
    fields = {"free_bytes": total_bytes, "baseline_bytes": 600 * MIB, **changes}
    return DeviceShare(kind=kind, total_bytes=total_bytes, **fields)


def test_weights_and_cache_of_a_known_model_are_exact() -> None:
    needs = rank_needs(llama_8b(), 1, dtype="bfloat16", kind="cuda", max_batched_tokens=8192, max_num_seqs=64)
    assert needs.weights == 2 * 8_030_261_248
    assert needs.kv_per_token == 128 * 1024
    assert needs.communicator == 0


def test_ranks_share_weights_and_cache() -> None:
    one, four = (
        rank_needs(llama_8b(), n, dtype="bfloat16", kind="cuda", max_batched_tokens=8192, max_num_seqs=64)
        for n in (1, 4)
    )
    assert four.kv_per_token * 4 == one.kv_per_token
    assert one.weights / 4 < four.weights < one.weights / 4 * 1.01  # the norms are whole on every rank
    assert four.communicator > 0


def test_the_workspace_follows_its_formula() -> None:
    tokens, rows, hidden, inner, vocabulary = 512, 64, 64, 172, 512
    needs = rank_needs(
        tiny_model(), 2, dtype="float32", kind="cpu", max_batched_tokens=tokens, max_num_seqs=rows
    )
    streams = tokens * hidden * (3 * 4 + 4)
    attention = tokens * (3 * 4 + 4 * 2) * 8 * 4
    mlp = tokens * 3 * math.ceil(inner / 2) * 4
    logits = rows * vocabulary // 2 * 4 + 2 * rows * vocabulary * 4
    assert needs.workspace == streams + max(attention, mlp) + logits


def test_captured_steps_and_attention_count_on_gpus() -> None:
    def workspace(*sizes: int) -> int:
        return rank_needs(
            llama_8b(),
            1,
            dtype="bfloat16",
            kind="cuda",
            max_batched_tokens=8192,
            max_num_seqs=64,
            graph_sizes=sizes,
        ).workspace

    assert workspace() > 256 * MIB
    assert workspace(1, 8) - workspace() > workspace(8) - workspace() > 16 * MIB
    planner = ResourceAllocator(configuration(max_num_seqs=6), llama_8b())
    plan = planner.plan(1, (share(80 * GIB),))
    assert plan.bounds is not None
    assert plan.bounds.graph_sizes == (1, 2, 4, 6)
    off = ResourceAllocator(configuration(cuda_graphs="off"), llama_8b()).plan(1, (share(80 * GIB),))
    assert off.bounds is not None
    assert off.bounds.graph_sizes == ()


def test_where_a_cpu_computes_in_tiles_no_kernels_of_onednn_are_planned_for() -> None:
    def runtime(dtype: str, quantization: str, *, tiles: bool | None) -> int:
        config = configuration(tensor_parallel_size=1, dtype=dtype, quantization=quantization, device="cpu")
        device = share(64 * GIB, "cpu", tiles=tiles)
        (ledger,) = MemoryPlanner(config, llama_8b()).plan(1, (device,)).ledgers
        return (ledger.runtime - device.baseline_bytes) // MIB

    assert runtime("bfloat16", "none", tiles=False) == 64
    # 24, and the end of a huge page for each weight that has pages of its own: four in each of 32 layers, and the head.
    assert runtime("bfloat16", "none", tiles=True) == 24 + 4 * 32 + 1
    assert runtime("float32", "int8", tiles=True) == 24 + 4 * 32 + 1
    assert runtime("float16", "int8", tiles=True) == 64
    assert runtime("float32", "none", tiles=True) == 64
    assert runtime("bfloat16", "none", tiles=None) == 24 + 4 * 32 + 1, "not known yet: what takes more"


def test_an_eighty_gigabyte_gpu_serves_an_8b_model_at_full_length() -> None:
    plan = ResourceAllocator(configuration(tensor_parallel_size=1), llama_8b()).plan(1, (share(80 * GIB),))
    assert plan.bounds is not None
    assert plan.bounds.max_model_len == 131072
    assert plan.notes == ()
    (ledger,) = plan.ledgers
    assert ledger.budget == int(0.9 * 80 * GIB)
    assert 0 <= ledger.free < plan.kv_bytes_per_token * 16  # all of it is cache, but for less than a block
    assert plan.bounds.kv_tokens > 400_000


def test_context_is_cut_to_what_fits_and_the_user_is_told() -> None:
    plan = ResourceAllocator(configuration(tensor_parallel_size=1), llama_8b()).plan(1, (share(24 * GIB),))
    assert plan.bounds is not None
    assert plan.bounds.max_model_len == plan.bounds.kv_tokens < 131072
    assert plan.notes[0].startswith(f"max-model-len is {plan.bounds.max_model_len}, not the model's 131072")


def test_a_length_that_was_asked_for_is_not_cut_but_refused_with_the_length_that_fits() -> None:
    config = configuration(tensor_parallel_size=1, max_model_len=131072)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(24 * GIB),))
    assert not plan.fits
    assert "a sequence of 131072 tokens does not fit" in plan.refusal
    length = int(plan.advice[0].split()[1])
    assert plan.advice[0] == f"--max-model-len {length} fits"
    follow = ResourceAllocator(replace(config, max_model_len=length), llama_8b()).plan(1, (share(24 * GIB),))
    assert follow.fits
    beyond = replace(config, max_model_len=length + 32)
    assert not ResourceAllocator(beyond, llama_8b()).plan(1, (share(24 * GIB),)).fits


def test_weights_that_do_not_fit_are_refused_with_the_ranks_that_would() -> None:
    config = configuration(tensor_parallel_size=1)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(12 * GIB),))
    assert not plan.fits
    assert "weights 15.0 GiB" in plan.refusal
    assert "may use 10.8 GiB of 12.0 GiB" in plan.refusal
    assert "--tensor-parallel-size 2 fits, with 2 devices of 12.0 GiB" in plan.advice
    assert ResourceAllocator(config, llama_8b()).plan(2, (share(12 * GIB),) * 2).fits


def test_a_model_in_float32_is_told_about_bfloat16() -> None:
    config = configuration(tensor_parallel_size=1, dtype="float32")
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(24 * GIB),))
    assert any(sentence.startswith("--dtype bfloat16 fits") for sentence in plan.advice)


def test_a_little_more_of_the_device_is_advised_where_that_is_enough() -> None:
    config = configuration(tensor_parallel_size=1, max_model_len=2048, max_num_seqs=1, memory_utilization=0.6)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(24 * GIB),))
    assert any("--memory-utilization" in sentence for sentence in plan.advice)


def test_a_size_that_does_not_split_the_heads_is_refused_with_those_that_do() -> None:
    plan = ResourceAllocator(configuration(), tiny_model()).plan(3, (share(GIB, "cpu"),) * 3)
    assert not plan.fits
    assert "1, 2, 4, 8" in plan.refusal


def test_on_a_cpu_no_more_cache_is_taken_than_can_be_used() -> None:
    plan = ResourceAllocator(configuration(), tiny_model()).plan(2, (share(16 * GIB, "cpu"),) * 2)
    assert plan.bounds is not None
    assert (
        plan.bounds.num_blocks == 1 + 64 * 256 // 16
    )  # every sequence at full length, and the scratch block


def test_on_a_cpu_the_steps_of_a_small_model_are_larger() -> None:
    for model, tokens in ((tiny_model(), 2048), (llama_8b(), 512)):
        plan = ResourceAllocator(configuration(), model).plan(1, (share(64 * GIB, "cpu"),))
        assert plan.bounds is not None
        assert plan.bounds.max_batched_tokens == tokens


def test_a_small_model_does_not_fill_a_large_gpu() -> None:
    plan = ResourceAllocator(configuration(), tiny_model()).plan(2, (share(80 * GIB),) * 2)
    assert plan.bounds is not None
    assert plan.bounds.num_blocks == 4 * (1 + 64 * 256 // 16)


def test_on_a_cpu_a_large_cache_is_taken_only_when_it_is_asked_for() -> None:
    shares = (share(128 * GIB, "cpu"),)
    config = configuration(tensor_parallel_size=1)
    plan = ResourceAllocator(config, llama_8b()).plan(1, shares)
    assert plan.ledgers[0].kv_cache == CPU_CACHE_BYTES
    asked = ResourceAllocator(replace(config, kv_cache_bytes=32 * GIB), llama_8b()).plan(1, shares)
    assert asked.ledgers[0].kv_cache == 32 * GIB


def test_a_cache_that_was_asked_for_and_does_not_fit_is_refused() -> None:
    config = configuration(tensor_parallel_size=1, kv_cache_bytes=64 * GIB)
    plan = ResourceAllocator(config, llama_8b()).plan(1, (share(40 * GIB),))
    assert not plan.fits
    assert "kv_cache 64.0 GiB" in plan.refusal


def test_workers_of_one_host_share_its_memory_also_with_those_still_to_come() -> None:
    allocator = ResourceAllocator(configuration(), tiny_model())  # two ranks and a spare
    workers = [worker("w0", device=cpu(12 * GIB)), worker("w1", device=cpu(12 * GIB))]
    assert allocator.share(workers[0], workers).sharing == 3
    elsewhere = worker("w2", host_id="beta")
    assert allocator.share(workers[0], [*workers, elsewhere]).sharing == 2
    plan = allocator.plan(2, (allocator.share(workers[0], workers),) * 2)
    assert plan.ledgers[0].budget == int(0.9 * 12 * GIB) // 3


def test_two_ranks_on_one_gpu_halve_it() -> None:
    allocator = ResourceAllocator(configuration(), tiny_model())
    workers = [worker("w0", device=gpu(0)), worker("w1", device=gpu(0)), worker("w2", device=gpu(1))]
    assert [allocator.share(w, workers).sharing for w in workers] == [2, 2, 1]


def test_gpus_that_processes_see_under_one_number_are_still_two() -> None:
    allocator = ResourceAllocator(configuration(), tiny_model())
    workers = [worker(f"w{n}", device=gpu(0, uuid=f"GPU-{n // 2}")) for n in range(3)]
    assert [allocator.share(w, workers).sharing for w in workers] == [2, 2, 1]


def test_what_others_hold_of_the_device_is_not_planned_with() -> None:
    taken = share(80 * GIB, free_bytes=20 * GIB, baseline_bytes=600 * MIB)
    plan = ResourceAllocator(configuration(tensor_parallel_size=1), llama_8b()).plan(1, (taken,))
    assert plan.ledgers[0].budget == 20 * GIB + 600 * MIB


def test_the_smallest_device_of_a_group_bounds_all_ranks() -> None:
    allocator = ResourceAllocator(configuration(), llama_8b())
    mixed = allocator.plan(2, (share(80 * GIB), share(24 * GIB)))
    small = allocator.plan(2, (share(24 * GIB), share(24 * GIB)))
    assert mixed.bounds is not None
    assert small.bounds is not None
    assert mixed.bounds.num_blocks == small.bounds.num_blocks


def test_bounds_hold_for_a_replacement_whose_predecessors_memory_is_not_back_yet() -> None:
    allocator = ResourceAllocator(configuration(tensor_parallel_size=1), llama_8b())
    bounds = allocator.plan(1, (share(80 * GIB),)).bounds
    assert bounds is not None
    assert allocator.holds(bounds, [share(80 * GIB, free_bytes=GIB, baseline_bytes=79 * GIB)])
    assert not allocator.holds(bounds, [share(40 * GIB)])


@settings(deadline=None)
@given(
    total_gib=st.integers(1, 200),
    size=st.sampled_from([1, 2, 4, 8]),
    utilization=st.floats(0.1, 1.0),
    sequences=st.integers(1, 256),
    kind=st.sampled_from(["cpu", "cuda"]),
)
def test_a_plan_never_promises_more_than_the_budget(
    total_gib: int, size: int, utilization: float, sequences: int, kind: str
) -> None:
    config = configuration(
        tensor_parallel_size=size, memory_utilization=utilization, max_num_seqs=sequences, spares=0
    )
    plan = MemoryPlanner(config, llama_8b()).plan(size, (share(total_gib * GIB, kind),) * size)
    assert plan.fits == (plan.refusal == "")
    for ledger in plan.ledgers:
        assert ledger.budget <= utilization * total_gib * GIB
        if plan.fits:
            assert ledger.free >= 0
    if plan.bounds is not None:
        assert plan.bounds.max_model_len <= plan.bounds.kv_tokens


def test_bytes_are_written_for_people() -> None:
    assert [format_bytes(count) for count in (512, 3 * MIB, 3 * GIB // 2)] == ["512 B", "3 MiB", "1.5 GiB"]


def test_a_cache_that_was_made_too_small_is_told_the_size_that_fits() -> None:
    config = configuration(tensor_parallel_size=1, kv_cache_bytes=5 * MIB, max_model_len=131072)
    refused = ResourceAllocator(config, llama_8b()).plan(1, (share(80 * GIB),))
    advice = next(sentence for sentence in refused.advice if sentence.startswith("--kv-cache-memory"))
    assert advice == f"--kv-cache-memory {(131072 + 16) * 128 // 1024}MiB fits"
    enough = replace(config, kv_cache_bytes=(131072 + 16) * 128 * 1024)
    assert ResourceAllocator(enough, llama_8b()).plan(1, (share(80 * GIB),)).fits
