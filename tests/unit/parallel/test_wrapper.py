"""Any module, split by a plan, equals itself; a plan that can't work says what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    DistributedModelWrapper,
    FeatureSlice,
    ParallelEmbedding,
    ParallelModelWrapper,
    PlanError,
    RowParallelLinear,
)
from ryzanstein_shard_worker.parallel.plan import STYLES, Style, resolve_plan
from tests.ranks import run_ranks

from .joining import joined, random

Build = Callable[[], nn.Module]


class MLP(nn.Module):
    """Sizes that no group divides; without a bias on the last."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 13)
        self.down = nn.Linear(13, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(x)))
        return y


class EncoderLayer(nn.Module):
    """As torch.nn.TransformerEncoderLayer, of plain parts, with the heads counted in an attribute."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, 27), nn.Linear(27, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        x = self.norm1(x + self.output(mixed))
        y: Tensor = self.norm2(x + self.linear2(functional.relu(self.linear1(x))))
        return y


class GroupedAttention(nn.Module):
    """As transformers writes it: head counts follow from sizes, groups stand in an attribute."""

    def __init__(self, heads: int = 8, kv_heads: int = 2) -> None:
        super().__init__()
        self.head_dim = 4
        self.num_key_value_groups = heads // kv_heads
        self.q_proj, self.o_proj = nn.Linear(10, heads * 4), nn.Linear(heads * 4, 10)
        self.k_proj, self.v_proj = nn.Linear(10, kv_heads * 4), nn.Linear(10, kv_heads * 4)
        self.q_norm = nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(len(x), -1, 4).transpose(0, 1) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (y.repeat_interleave(self.num_key_value_groups, 0) for y in (k, v))
        mixed = functional.scaled_dot_product_attention(self.q_norm(q), k, v, is_causal=True)
        y: Tensor = self.o_proj(mixed.transpose(0, 1).reshape(len(x), -1))
        return y


class TiedModel(nn.Module):
    """A vocabulary whose two ends share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=2)
        self.body = MLP()
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, token_ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.embedding(token_ids)))
        return y


class FusedMLP(nn.Module):
    """Gate and up in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(6, 14)
        self.down = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(functional.silu(gate) * up)
        return y


def check_equal(build: Build, plan: Mapping[str, str], x: Tensor, world: int) -> None:
    """Forward, and every gradient of the ranks' slices put together, equal those of the module itself."""
    torch.manual_seed(0)
    original = build()
    leaf = x.clone().requires_grad_() if x.is_floating_point() else x
    expected = original(leaf)
    upstream = random(*expected.shape, seed=5)
    expected.backward(upstream)

    def on_rank(handler: CommunicationHandler) -> tuple[Tensor, Tensor | None, nn.Module]:
        module = copy.deepcopy(original)
        module.zero_grad()
        wrapped = DistributedModelWrapper(module, plan, handler)
        assert wrapped.module is module
        own_leaf = x.clone().requires_grad_() if x.is_floating_point() else x
        y = wrapped(own_leaf)
        y.backward(upstream)
        return y.detach(), own_leaf.grad, module

    ranks = run_ranks(world, on_rank)
    for output, gradient, _ in ranks:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, leaf.grad, atol=1e-5, rtol=1e-5)
    for name, parameter in original.named_parameters():
        module_name, _, kind = name.rpartition(".")
        parts = [module.get_submodule(module_name) for _, _, module in ranks]
        gradients = [part.get_parameter(kind).grad for part in parts]
        if isinstance(parts[0], RowParallelLinear) and kind == "weight":
            slices = [part.part for part in parts if isinstance(part, RowParallelLinear)]
            gradients = [joined(slices, gradients, dim=1)]
        elif isinstance(parts[0], ColumnParallelLinear | ParallelEmbedding):
            gradients = [_joined_rows(parts, gradients)]
        for gradient in gradients:
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-5, msg=name)


def _joined_rows(parts: list[nn.Module], gradients: list[Tensor | None]) -> Tensor:
    slices: list[list[FeatureSlice]] = []
    pieces: list[tuple[Tensor, ...]] = []
    for part, gradient in zip(parts, gradients, strict=True):
        assert isinstance(part, ColumnParallelLinear | ParallelEmbedding)
        assert gradient is not None
        slices.append(list(part.parts) if isinstance(part, ColumnParallelLinear) else [part.part])
        pieces.append(torch.split(gradient, [piece.rows for piece in slices[-1]]))
    return torch.cat(
        [joined(s, p) for s, p in zip(zip(*slices, strict=True), zip(*pieces, strict=True), strict=True)]
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "plan",
    [
        {"up": "column", "down": "row"},
        {"up": "colwise_gather_output"},
        {"up": "colwise_rep", "down": "rowwise_split_input"},
        {"down": "rowwise_rep"},
        {"*": "replicate"},
    ],
    ids=str,
)
def test_a_plain_mlp(world: int, plan: Mapping[str, str]) -> None:
    check_equal(MLP, plan, random(5, 6, seed=1), world)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_encoder_layer_that_counts_its_heads(world: int) -> None:
    plan = {
        "query": "column",
        "key": "column",
        "value": "column",
        "heads": "divide",
        "output": "row",
        "linear1": "column",
        "linear2": "row",
    }
    check_equal(EncoderLayer, plan, random(2, 5, 16, seed=1), world)
    stacked = {f"*.{name}": style for name, style in plan.items()}
    check_equal(
        lambda: nn.Sequential(EncoderLayer(), EncoderLayer()), stacked, random(2, 5, 16, seed=1), world
    )


@pytest.mark.parametrize(("world", "kv_heads"), [(2, 2), (4, 2), (4, 1), (8, 2)])
def test_key_value_heads_that_are_fewer_than_the_ranks_are_shared(world: int, kv_heads: int) -> None:
    plan = {
        "q_proj": "colwise",
        "k_proj": "colwise",
        "v_proj": "colwise",
        "o_proj": "rowwise",
        "q_norm": "replicated_with_grad_allreduce",
    }
    check_equal(lambda: GroupedAttention(kv_heads=kv_heads), plan, random(6, 10, seed=1), world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "plan",
    [
        {"head": "colwise_gather_output"},
        {"embedding": "embedding_rowwise"},
        {"embedding": "embedding", "head": "column_gather_output", "body.up": "column", "body.down": "row"},
    ],
    ids=str,
)
def test_a_tied_embedding_and_head_are_split_together(world: int, plan: Mapping[str, str]) -> None:
    check_equal(TiedModel, plan, torch.tensor([[1, 2, 10], [0, 2, 5]]), world)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_two_projections_in_one_matrix(world: int) -> None:
    check_equal(FusedMLP, {"gate_up": "packed_colwise", "down": "rowwise"}, random(5, 6, seed=1), world)


def test_a_module_in_two_places_is_split_once() -> None:
    def build() -> nn.Module:
        shared = MLP()
        return nn.Sequential(shared, shared)

    check_equal(build, {"*.up": "column", "*.down": "row"}, random(5, 6, seed=1), 3)


def test_what_is_frozen_stays_frozen_and_eval_stays_eval() -> None:
    module = MLP().eval()
    module.up.weight.requires_grad_(False)
    wrapped = ParallelModelWrapper(module, {"up": "column"}, SingleHandler())
    up = wrapped.module.get_submodule("up")
    assert not up.get_parameter("weight").requires_grad
    assert up.get_parameter("bias").requires_grad
    assert not up.training


def test_a_wrapped_model_can_be_packed_for_serving() -> None:
    x = random(2, 3, 6, seed=1)
    original = MLP()

    def on_rank(handler: CommunicationHandler) -> tuple[Tensor, Tensor]:
        wrapped = DistributedModelWrapper(copy.deepcopy(original), {"up": "column", "down": "row"}, handler)
        with torch.inference_mode():
            plain = wrapped(x)
            wrapped.pack()
            return plain, wrapped(x)

    for plain, packed in run_ranks(2, on_rank):
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)


def refused(build: Build, plan: Mapping[str, str], world: int = 2) -> str:
    """The message of the error."""

    def on_rank(handler: CommunicationHandler) -> str:
        with pytest.raises(PlanError) as error:
            DistributedModelWrapper(build(), plan, handler)
        return str(error.value)

    return run_ranks(world, on_rank)[0]


def test_an_unknown_style_names_the_known_ones() -> None:
    message = refused(MLP, {"up": "diagonal"})
    assert message.startswith("plan entry 'up': unknown style 'diagonal'; known are column, ")


def test_an_entry_that_fits_nothing_is_an_error_and_a_missing_prefix_is_found() -> None:
    assert refused(MLP, {"upp": "column"}) == "plan entry 'upp' fits nothing in the module"
    message = refused(lambda: nn.ModuleDict({"model": MLP()}), {"up": "column"})
    assert message == "plan entry 'up' fits nothing in the module; did you mean model.up?"


def test_a_style_that_does_not_fit_the_part_is_an_error() -> None:
    assert refused(lambda: nn.Sequential(nn.Embedding(8, 4)), {"0": "rowwise"}) == (
        "0: the style 'row' splits torch.nn.Linear, not Embedding"
    )
    assert refused(GroupedAttention, {"q_norm": "colwise"}) == (
        "q_norm: the style 'column' splits torch.nn.Linear, not RMSNorm"
    )
    assert "aren't two projections of one size" in refused(MLP, {"up": "packed_colwise"})


def test_heads_that_the_ranks_can_neither_split_nor_share_are_an_error() -> None:
    message = refused(lambda: GroupedAttention(8, 2), {"k_proj": "colwise"}, world=3)
    assert message == "k_proj: 2 heads can't be split over 3 ranks, nor shared by them"
    assert "8 heads can't be split over 3 ranks" in refused(GroupedAttention, {"o_proj": "rowwise"}, world=3)
    assert "heads: 4 can't be divided by 3 ranks" in refused(EncoderLayer, {"heads": "divide"}, world=3)


def test_a_shared_weight_that_can_not_follow_is_an_error() -> None:
    message = refused(TiedModel, {"embedding": "embedding", "head": "row_split_input"})
    assert "head: shares its weight with embedding" in message


def test_options_of_an_embedding_that_do_not_survive_are_an_error() -> None:
    message = refused(lambda: nn.Sequential(nn.Embedding(8, 4, max_norm=1.0)), {"0": "embedding"})
    assert "max_norm" in message


def test_modules_that_bypass_their_parts_are_refused() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
    assert "reads the weights of its parts" in refused(lambda: layer, {"linear1": "column", "linear2": "row"})
    assert "reads the weights of its parts" in refused(lambda: layer, {"self_attn.out_proj": "row"})


def test_of_several_patterns_the_first_counts() -> None:
    styles = resolve_plan(
        {"layers.0.up": "replicate", "layers.*.up": "column"}, ["layers.0.up", "layers.1.up"]
    )
    assert styles == {"layers.0.up": Style.REPLICATE, "layers.1.up": Style.COLUMN}


def test_a_star_stands_for_one_part_of_a_name() -> None:
    with pytest.raises(PlanError):
        resolve_plan({"*.up": "column"}, ["layers.0.up"])


def test_every_style_of_ours_is_a_word_of_plans() -> None:
    assert {style.value for style in Style} <= set(STYLES)
