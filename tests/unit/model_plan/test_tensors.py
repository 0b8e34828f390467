"""The split of a model: every element of every tensor reaches the right ranks, once each."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.model_plan import (
    ModelConfig,
    ModelError,
    Placement,
    check_tensor_parallel_size,
    kv_head_range,
    module_of,
    parameters,
    placements,
    read_model_config,
    source_tensors,
    split_range,
    tensor_parallel_sizes,
)
from ryzanstein.model_plan.boxes import intersection, is_within, sizes, uncovered, volume, whole
from tests.checkpoints import FAMILIES, Checkpoints

from .configs import record, records


@st.composite
def splits(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    config = draw(records())
    return config, draw(st.sampled_from(tensor_parallel_sizes(config)))


@given(splits())
def test_the_ranks_together_hold_every_tensor(split: tuple[ModelConfig, int]) -> None:
    config, world = split
    held: dict[str, list[Placement]] = {}
    for rank in range(world):
        for placement in placements(config, rank, world):
            held.setdefault(placement.tensor, []).append(placement)
    expected = source_tensors(config)
    assert held.keys() == expected.keys()
    for tensor, shape in expected.items():
        boxes = [placement.source for placement in held[tensor]]
        assert all(is_within(box, shape) for box in boxes)
        assert not uncovered(whole(shape), boxes)
        distinct = set(boxes)
        assert sum(map(volume, distinct)) == math.prod(shape), "parts overlap without being replicas"
        replicas = len(boxes) / len(distinct)
        if "norm" in tensor or tensor.endswith(("o_proj.bias", "down_proj.bias")):
            assert replicas == world
        elif "k_proj" in tensor or "v_proj" in tensor:
            assert replicas == max(1, world // config.num_kv_heads)
        else:
            assert replicas == 1


@given(splits())
def test_boxes_of_a_parameter_fit_and_do_not_overlap(split: tuple[ModelConfig, int]) -> None:
    config, world = split
    shapes = None
    for rank in range(world):
        plans = {plan.name: plan.shape for plan in parameters(config, rank, world)}
        assert shapes in (None, plans), "every rank has the same shapes"
        shapes = plans
        of_parameter: dict[str, list[Placement]] = {}
        for placement in placements(config, rank, world):
            assert sizes(placement.source) == sizes(placement.target)
            assert is_within(placement.target, plans[placement.parameter])
            of_parameter.setdefault(placement.parameter, []).append(placement)
        for boxes in of_parameter.values():
            for one, other in itertools.combinations(boxes, 2):
                assert intersection(one.target, other.target) is None


@given(splits())
def test_a_query_head_stays_with_its_key_value_head(split: tuple[ModelConfig, int]) -> None:
    config, world = split
    queries_per_kv = config.num_heads // config.num_kv_heads
    for rank in range(world):
        first, last = kv_head_range(config, rank, world)
        heads = config.num_heads // world
        for local in range(heads):
            local_kv = local // (heads // (last - first))  # how attention pairs the heads that a rank has
            assert first + local_kv == (rank * heads + local) // queries_per_kv


@given(size=st.integers(0, 100), world=st.integers(1, 12))
def test_parts_of_a_range_follow_each_other(size: int, world: int) -> None:
    parts = [split_range(size, rank, world) for rank in range(world)]
    assert [index for start, stop in parts for index in range(start, stop)] == list(range(size))
    assert max(stop - start for start, stop in parts) == -(-size // world)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_names_the_tensors_that_transformers_stores(
    checkpoints: Checkpoints, family: str, tied: bool
) -> None:
    from safetensors import safe_open

    directory = checkpoints(family, tie_word_embeddings=tied)
    with safe_open(directory / "model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert source_tensors(read_model_config(directory)) == stored


@pytest.mark.parametrize("overrides", [{"attention_bias": True}, {"mlp_bias": True}])
def test_names_the_biases_that_transformers_stores(
    checkpoints: Checkpoints, overrides: dict[str, bool]
) -> None:
    from safetensors import safe_open

    directory = checkpoints("llama", num_hidden_layers=1, **overrides)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert set(source_tensors(read_model_config(directory))) == set(file.keys())


def test_fuses_and_pads_as_the_layers_expect() -> None:
    config = record(num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=3, intermediate_size=5, vocab_size=7)
    shapes = {plan.name: plan.shape for plan in parameters(config, 1, 4)}
    assert shapes == {
        "embedding.weight": (2, 3),
        "layers.0.input_norm.weight": (3,),
        "layers.0.attention.qkv.weight": (6, 3),
        "layers.0.attention.output.weight": (3, 2),
        "layers.0.post_attention_norm.weight": (3,),
        "layers.0.mlp.gate_up.weight": (4, 3),
        "layers.0.mlp.down.weight": (3, 2),
        "norm.weight": (3,),
        "head.weight": (2, 3),
    }
    of_rank_2 = {placement.tensor: placement for placement in placements(config, 2, 4)}
    up = of_rank_2["model.layers.0.mlp.up_proj.weight"]
    assert (up.source, up.target) == (((4, 5), (0, 3)), ((2, 3), (0, 3)))
    value = of_rank_2["model.layers.0.self_attn.v_proj.weight"]
    assert (value.source, value.target) == (((2, 4), (0, 3)), ((4, 6), (0, 3)))
    assert "model.layers.0.mlp.up_proj.weight" not in {p.tensor for p in placements(config, 3, 4)}


def test_parameters_are_held_in_the_dtype_asked_for() -> None:
    config = record(dtype="bfloat16")
    assert {plan.dtype for plan in parameters(config, 0, 1)} == {"bfloat16"}
    assert {plan.dtype for plan in parameters(config, 0, 1, "float32")} == {"float32"}


def test_modules_are_what_is_loaded_one_after_the_other() -> None:
    config = record(num_layers=2, qk_norm=True)
    modules = [plan.module for plan in parameters(config, 0, 1)]
    assert [key for key, _ in itertools.groupby(modules)] == [
        "embedding",
        "layers.0",
        "layers.1",
        "norm",
        "head",
    ]
    assert module_of("layers.11.mlp.down.bias") == "layers.11"


def test_says_which_sizes_split_the_heads() -> None:
    config = record(num_heads=12, num_kv_heads=4)
    assert tensor_parallel_sizes(config) == (1, 2, 4, 12)
    check_tensor_parallel_size(config, 12)
    for world in (0, -1, 3, 6, 24):
        with pytest.raises(ModelError, match=r"12 attention heads and 4 .* sizes that work: 1, 2, 4, 12"):
            check_tensor_parallel_size(config, world)
    with pytest.raises(ModelError, match="rank 4 is not one of the 4 ranks 0 to 3"):
        parameters(config, 4, 4)
    with pytest.raises(ModelError, match="rank -1 is not one"):
        placements(config, -1, 4)
