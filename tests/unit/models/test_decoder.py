"""A model has the parameters that the plan promises, in its order, and counts its bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ryzanstein.model_plan import (
    ModelConfig,
    ModelError,
    parameters,
    read_model_config,
    weight_bytes_per_rank,
)
from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.models import build_model
from ryzanstein_shard_worker.parallel import dense_causal_attend
from ryzanstein_shard_worker.parallel.packed_weight import can_pack
from tests.checkpoints import FAMILIES, Checkpoints
from tests.loaded_models import CPU, load_model
from tests.ranks import run_ranks

F32 = torch.float32

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"num_key_value_heads": 1, "attention_bias": True}),
    ("mistral", {"sliding_window": 7}),
]


def config_of(checkpoints: Checkpoints, family: str = "llama", **overrides: object) -> ModelConfig:
    return read_model_config(checkpoints(family, **overrides))


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=str)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_parameters_are_those_of_the_plan(
    checkpoints: Checkpoints, family: str, overrides: dict[str, object], world: int
) -> None:
    config = config_of(checkpoints, family, **overrides)

    def on_rank(handler: CommunicationHandler) -> None:
        model = build_model(config, handler, torch.bfloat16, CPU)
        ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        plan = {item.name: item.shape for item in parameters(config, handler.rank, handler.world_size)}
        assert ours == plan
        assert [name for name, _ in model.named_parameters()] == list(plan)
        assert model.weights_bytes == weight_bytes_per_rank(config, world, "bfloat16")

    run_ranks(world, on_rank)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_come_in_the_order_of_the_plan(checkpoints: Checkpoints, tied: bool) -> None:
    config = config_of(checkpoints, tie_word_embeddings=tied)
    model = build_model(config, SingleHandler(), F32, CPU)
    names = [name for name, _ in model.layers_in_order()]
    assert names == ["embedding", "layers.0", "layers.1", "norm", "head"]
    planned = dict.fromkeys(item.module for item in parameters(config, 0, 1))
    assert list(planned) == (names[:-1] if tied else names)


@pytest.mark.parametrize("tied", [False, True])
def test_packing_while_loading_leaves_one_copy_of_every_weight_but_a_tied_one(
    checkpoints: Checkpoints, tied: bool
) -> None:
    directory = checkpoints("llama", tie_word_embeddings=tied)
    model = load_model(directory, SingleHandler(), pack=True)
    config = read_model_config(directory)
    again = 4 * config.vocab_size * config.hidden_size if tied else 0
    assert model.weights_bytes == weight_bytes_per_rank(config, 1, "float32") + again
    assert model.reproducible
    plain = {name for name, _ in model.named_parameters()}
    assert {name for name in plain if "norm" not in name} == {"embedding.weight"}


def test_packing_at_once_is_the_same_as_packing_while_loading(checkpoints: Checkpoints) -> None:
    directory = checkpoints("qwen2", tie_word_embeddings=True)
    at_once = load_model(directory, SingleHandler())
    assert not at_once.reproducible
    at_once.pack()
    assert at_once.reproducible
    packed = load_model(directory, SingleHandler(), pack=True)
    assert at_once.weights_bytes == packed.weights_bytes
    token_ids, positions = torch.arange(9), torch.arange(9)
    with torch.inference_mode():
        results = [
            model.logits(model(token_ids, positions, dense_causal_attend([9]))) for model in (at_once, packed)
        ]
    assert torch.equal(*results)


def test_a_module_that_is_not_there_can_not_be_packed(checkpoints: Checkpoints) -> None:
    model = build_model(config_of(checkpoints), SingleHandler(), F32, CPU)
    with pytest.raises(KeyError, match=r"layers\.2"):
        model.pack_module("layers.2")


def test_no_rows_have_no_logits(checkpoints: Checkpoints) -> None:
    def on_rank(handler: CommunicationHandler) -> tuple[tuple[int, ...], torch.dtype, int]:
        model = load_model(checkpoints(), handler, dtype="bfloat16")
        with torch.inference_mode():
            logits = model.logits(torch.empty(0, 64, dtype=torch.bfloat16))
        return tuple(logits.shape), logits.dtype, handler.last.sequence

    assert run_ranks(2, on_rank) == [((0, 331), F32, 0)] * 2


def test_windows_and_scale_are_what_attention_needs(checkpoints: Checkpoints) -> None:
    config = config_of(checkpoints, "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    model = build_model(config, SingleHandler(), F32, CPU)
    assert model.sliding_windows == (None, 8)
    assert model.attention_scale == config.head_dim**-0.5


def test_positions_go_as_far_as_asked(checkpoints: Checkpoints) -> None:
    config = config_of(checkpoints)
    assert build_model(config, SingleHandler(), F32, CPU, max_positions=10).rotary.table.shape == (10, 16)
    assert build_model(config, SingleHandler(), F32, CPU).rotary.table.shape == (256, 16)


def test_an_unknown_family_is_refused_with_the_known_ones(checkpoints: Checkpoints) -> None:
    config = replace(config_of(checkpoints), family="gpt", architecture="GPTForCausalLM")
    with pytest.raises(
        ModelError, match=r"GPTForCausalLM: no modules for the family 'gpt'; there are llama, "
    ):
        build_model(config, SingleHandler(), F32, CPU)


def test_a_group_that_does_not_divide_the_heads_is_refused(checkpoints: Checkpoints) -> None:
    config = config_of(checkpoints)
    with pytest.raises(ModelError, match="tensor-parallel size of 3"):
        run_ranks(3, lambda handler: build_model(config, handler, F32, CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reproducible_means_that_everything_was_packed(checkpoints: Checkpoints, dtype: torch.dtype) -> None:
    model = load_model(checkpoints(), SingleHandler(), dtype=str(dtype).removeprefix("torch."), pack=True)
    assert model.reproducible == can_pack(dtype, CPU)
